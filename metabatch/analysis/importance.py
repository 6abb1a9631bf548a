"""Which features the models use and need, by seven methods, and one ranking of them all.

Gain, cover and number of splits are those of the delivered models, hence of training rows. Permutation asks the models
of a fold about rows they did not train on. SHAP comes from its own analysis. Mutual information and effect size are of
the data, without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import xgboost as xgb

from metabatch.analysis.associations import associations
from metabatch.analysis.feature_groups import group_of
from metabatch.analysis.frame import Found, ImpossibleError, Shown
from metabatch.analysis.importance_pictures import importance_pictures
from metabatch.analysis.importance_table import (
    METHODS,
    agreement,
    merge_groups,
    merge_importance,
    methods_of,
    model_scores,
    ranked,
)
from metabatch.analysis.permutation import MEASURED, NO_CV, REPEATS, fewer, permutation_importance
from metabatch.analysis.sampling import MatrixRows
from metabatch.rundir.manifests import Feature

__all__ = ["importance", "importance_found", "importance_pictures", "merge_groups", "merge_importance"]

# A single feature with more of the gain than this may give the label away.
LARGE_SHARE = 0.8
# A feature that does harm is named when that is this part of what the most useful one gains.
HARM = 0.1
TOP = 15


def importance(
    final: Mapping[str, xgb.Booster], held_out: tuple[Mapping[str, xgb.Booster], MatrixRows] | None, rows: MatrixRows,
    shap: pl.DataFrame | None, features: Sequence[Feature], matrix_names: Sequence[str], classes: Sequence[str], *,
    on: str, seed: int, threads: int, check: Callable[[], None],
) -> Found:  # fmt: skip
    """Importance of every feature for every class.

    Parameters
    ----------
    final : mapping
        Class -> the delivered model; classes without one are left out.
    held_out : tuple, optional
        Models of a fold, and rows that they did not train on. Without it there is no permutation.
    rows : MatrixRows
        For mutual information and effect size.
    shap : DataFrame, optional
        class, feature, mean_abs_shap.
    matrix_names : sequence of str
        Names of `features` in the boosters.
    on : str
        Which rows and models these are.
    check : callable
        Called between steps; raises when the work is to stop.

    Raises
    ------
    ImpossibleError
        No model, or no rows.
    """
    asked = [c for c in classes if c in final]
    if not asked or not len(rows):
        raise ImpossibleError("there is no model" if not asked else "there are no rows")
    names = [f.name for f in features]
    scores = [f.name for f in features if f.group == "score"] + [f"{c}_score" for c in classes]
    groups = pl.DataFrame({"feature": names, "group": [group_of(f, scores) for f in features]})
    table = model_scores({c: final[c] for c in asked}, names, matrix_names).join(groups, on="feature")
    if shap is None:
        table = table.with_columns(shap=pl.lit(None, dtype=pl.Float64))
    else:
        values = shap.select("class", "feature", shap=pl.col("mean_abs_shap").cast(pl.Float64).fill_nan(None))
        table = table.join(values, on=["class", "feature"], how="left", maintain_order="left")
    data = associations(rows, features, classes, check)
    table = table.join(data, on=["class", "feature"], how="left", maintain_order="left")
    words = [
        f"{on}. Gain, cover and splits: the delivered models, so training rows",
        f"mutual information and effect size: {_counted(rows)}, no model",
    ]
    by_group = None
    if held_out is None:
        nothing = [pl.lit(None, dtype=pl.Float64).alias(c) for c in MEASURED]
        table = table.with_columns(*nothing, permutation_note=pl.lit(NO_CV))
    else:
        models, tried = held_out[0], fewer(held_out[1], len(classes), seed)
        of_fold = model_scores({c: models[c] for c in asked if c in models}, names, matrix_names)
        of_fold = of_fold.select("class", "feature", fold_gain="gain")
        used = table.select("class", "feature", "group", "gain").join(
            of_fold, on=["class", "feature"], how="left", maintain_order="left"
        )
        by_feature, by_group = permutation_importance(
            models, tried, classes, used, seed=seed, threads=threads, check=check
        )
        table = table.join(by_feature, on=["class", "feature"], how="left", maintain_order="left")
        words.append(f"permutation: {_counted(tried)} that the models of a fold did not train on")
    table = ranked(table)
    return importance_found(table, _group_table(table, by_group), "; ".join(words))


def importance_found(table: pl.DataFrame, groups: pl.DataFrame, on: str) -> Found:
    """What a table of importance says, also of one merged from several members."""
    methods = methods_of(table)
    lacking = [METHODS[m] for m in METHODS if m not in methods]
    says, facts, shown = [], {}, []
    for name, part in _by_class(table):
        of_class = groups.filter(pl.col("class") == name)
        top = part.sort("rank").head(TOP)
        says.append(_sentence(name, top, of_class, len(methods_of(part))))
        largest = part.sort("gain", descending=True).row(0, named=True)
        facts[name] = {
            "methods": methods_of(part),
            "first": top["feature"].to_list(),
            "features_used": part.filter(pl.col("gain") > 0).height,
            "significant_at_q_0.05": part.filter(pl.col("q_value") < 0.05).height,
            "largest_gain_share": {"feature": largest["feature"], "share": largest["gain_share"]},
            "groups": of_class.drop("class").to_dicts(),
        }
        shown.append(_shown_features(name, top, methods_of(part)))
    if lacking:
        says.append(f"Not there: {', '.join(lacking)}.")
    shown.append(_shown_groups(groups))
    together, matrix = agreement(table)
    facts["agreement"] = {"methods": together, "spearman": matrix.tolist()}
    return Found(
        on=on, says=says, flags=_flags(table), facts=facts, shown=shown,
        tables={"importance": table, "importance_groups": groups}, pictures=importance_pictures(table, groups, on),
    )  # fmt: skip


def _group_table(table: pl.DataFrame, by_group: pl.DataFrame | None) -> pl.DataFrame:
    """class, group, features, gain_share, shap, shap_share, permutation, permutation_sd, permutation_ap."""
    groups = table.group_by("class", "group", maintain_order=True).agg(
        features=pl.len().cast(pl.Int64),
        gain_share=_sum_if_any("gain_share"),
        shap=_sum_if_any("shap"),
    )
    groups = groups.with_columns(shap_share=pl.col("shap") / pl.col("shap").sum().over("class"))
    if by_group is None:
        groups = groups.with_columns(pl.lit(None, dtype=pl.Float64).alias(c) for c in MEASURED)
    else:
        measured = by_group.select("class", "group", *MEASURED)
        groups = groups.join(measured, on=["class", "group"], how="left", maintain_order="left")
    return groups.with_columns(pl.col("shap_share").fill_nan(None))


def _sum_if_any(column: str) -> pl.Expr:
    return pl.when(pl.col(column).is_not_null().any()).then(pl.col(column).sum())


def _by_class(table: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    return [(part["class"][0], part) for part in table.partition_by("class", maintain_order=True)]


def _counted(rows: MatrixRows) -> str:
    return f"{len(rows):,} rows of {len(np.unique(rows.unit)):,} genes"


def _sentence(name: str, top: pl.DataFrame, groups: pl.DataFrame, methods: int) -> str:
    first = ", ".join(top["feature"].head(3))
    text = f"{name}: most important are {first} (by the mean rank of {methods} methods)"
    shares = groups.drop_nulls("gain_share").sort("gain_share", descending=True)
    if shares.height and shares["gain_share"][0] > 0:
        text += f"; {shares['group'][0]} carry {shares['gain_share'][0]:.0%} of the gain"
    moved = groups.drop_nulls("permutation").sort("permutation", descending=True)
    if moved.height and moved["permutation"][0] > 2 * moved["permutation_sd"][0]:
        text += f", and the loss of {moved['group'][0]} costs most ({moved['permutation'][0]:+.3g} log loss)"
    return text + "."


def _flags(table: pl.DataFrame) -> list[str]:
    flags = []
    for name, part in _by_class(table):
        for row in part.filter(pl.col("gain_share") > LARGE_SHARE).iter_rows(named=True):
            meaning = (
                "the model says little more than the base model" if row["group"] == "base scores"
                else "look at it, it may give the label away"
            )  # fmt: skip
            flags.append(f"{name}: {row['feature']} alone carries {row['gain_share']:.0%} of the gain: {meaning}")
        others = [m for m in methods_of(part) if m != "permutation"]
        first = min(20, max(1, part.height // 4))
        agree = pl.sum_horizontal(pl.col(f"rank_{m}") <= first for m in others) > len(others) / 2
        worse = (pl.col("permutation") < -2 * pl.col("permutation_sd")) & (pl.col("permutation_sd") > 0)
        telling = pl.col("permutation") < -HARM * pl.col("permutation").max()
        harm = part.filter(agree & worse & telling).sort("rank")
        if harm.height:
            found = ", ".join(f"{row['feature']} ({row['permutation']:+.2g})" for row in harm.iter_rows(named=True))
            flags.append(
                f"{name}: among the first {first} of most methods, but held-out rows are predicted better when their "
                f"values are exchanged between genes (change of the log loss): {found}"
            )
    return flags


def _shown_features(name: str, top: pl.DataFrame, methods: Sequence[str]) -> Shown:
    kept = (
        "rank", "feature", "group", "gain_share", "permutation", "shap", "mutual_information", "effect_size",
        "q_value",
    )  # fmt: skip
    return Shown(
        title=f"Most important features: {name}",
        columns=(
            "rank", "feature", "group", "gain", "permutation", "mean |SHAP|", "mutual information", "effect size", "q",
        ),
        kinds=(
            "count", "text", "text", "percent", "small", "small", "small", "signed", "small",
        ),
        rows=tuple(top.select(kept).iter_rows()),
        note=f"Rank: by the mean rank over {', '.join(METHODS[m] for m in methods)}. Permutation: "
        f"increase of the log loss (nats) when the feature's values move between genes, mean of {REPEATS} tries. "
        "Effect size: Cliff's delta, -1 to 1. q: false discovery rate of the difference within genes.",
    )  # fmt: skip


def _shown_groups(groups: pl.DataFrame) -> Shown:
    kept = ("class", "group", "features", "gain_share", "shap_share", "permutation", "permutation_sd")
    return Shown(
        title="Groups of features",
        columns=("class", "group", "features", "gain", "SHAP", "permutation", "sd"),
        kinds=("text", "text", "count", "percent", "percent", "small", "small"),
        rows=tuple(
            row for _, part in _by_class(groups)
            for row in part.sort("gain_share", descending=True, nulls_last=True).select(kept).iter_rows()
        ),
        note="Groups are told by the features' names. Permutation: all features of the group moved together, so that "
        "features that can stand in for one another are not all found unimportant.",
    )  # fmt: skip
