"""The table of importance: a row per class and feature, the methods' values, their ranks, and one ranking of all.

Unified ranking: a method ranks the features of a class from 0 (first) to 1 (last), ties in the middle; the mean over
the methods that are there is `mean_rank`, and its order is `rank`. Before ranking, a permutation importance below 0
counts as 0 (no better than not being used), an effect size counts without its sign, and a cell that is empty counts
as 0: what a method did not measure in a feature is no reason to put it ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import xgboost as xgb
from scipy.stats import spearmanr  # type: ignore[import-untyped,unused-ignore]

from metabatch.analysis.associations import false_discoveries

# Column -> what it is called in a report.
METHODS = {
    "gain": "gain",
    "cover": "cover",
    "weight": "number of splits",
    "permutation": "permutation",
    "shap": "SHAP",
    "mutual_information": "mutual information",
    "effect_size": "effect size",
}
_MEANS = ("gain", "gain_share", "cover", "weight", "permutation", "permutation_ap", "shap", "mutual_information",
          "effect_size")  # fmt: skip
_COLUMNS = (
    "class", "feature", "group", "gain", "gain_share", "cover", "weight", "permutation", "permutation_sd",
    "permutation_ap", "permutation_note", "shap", "mutual_information", "effect_size", "p_value", "q_value",
    *(f"rank_{m}" for m in METHODS), "mean_rank", "rank", "overall_mean_rank", "overall_rank",
)  # fmt: skip


def model_scores(models: Mapping[str, xgb.Booster], features: Sequence[str], names: Sequence[str]) -> pl.DataFrame:
    """Columns class, feature, gain, gain_share, cover, weight; 0 for a feature without a split.

    gain and cover are totals over splits; gain_share is null when the model has no split at all. `names`: the
    features' names in the boosters.
    """
    parts = []
    for name, model in models.items():
        known = model.feature_names or [f"f{i}" for i in range(len(names))]
        if list(known) != list(names) and model.feature_names:
            raise ValueError(f"the model of {name} has other features than the matrix")
        scores = {
            column: np.array([found.get(k, 0.0) for k in known], dtype=np.float64)
            for column, kind in (("gain", "total_gain"), ("cover", "total_cover"), ("weight", "weight"))
            for found in [model.get_score(importance_type=kind)]
        }
        total = scores["gain"].sum()
        parts.append(
            pl.DataFrame(
                {"class": [name] * len(features), "feature": list(features), **scores}
            ).with_columns(gain_share=pl.col("gain") / total if total else pl.lit(None, dtype=pl.Float64))
        )  # fmt: skip
    return pl.concat(parts)


def ranked(table: pl.DataFrame) -> pl.DataFrame:
    """The table with its ranks, in matrix order within classes; see the module."""
    features = pl.len().over("class")
    table = table.with_row_index("_order")
    for method in METHODS:
        value = pl.col(method).fill_null(0.0)
        counted = {"permutation": value.clip(lower_bound=0.0), "effect_size": value.abs()}.get(method, value)
        rank = counted.rank("average", descending=True).over("class")
        there = pl.col(method).is_not_null().any().over("class")
        table = table.with_columns(pl.when(there).then(rank).alias(f"rank_{method}"))
    normalised = [(pl.col(f"rank_{m}") - 1) / pl.max_horizontal(features - 1, 1) for m in METHODS]
    # Rounded, so that equal means are equal whatever the order of adding.
    table = table.with_columns(mean_rank=pl.mean_horizontal(normalised).round(12))
    table = table.with_columns(overall_mean_rank=pl.col("mean_rank").mean().over("feature").round(12))
    best_first = table.sort("mean_rank", -pl.col("gain_share").fill_null(0.0), "_order")
    table = best_first.with_columns(rank=pl.int_range(1, pl.len() + 1).over("class"))
    first = (
        table.sort("_order").unique("feature", keep="first", maintain_order=True).sort("overall_mean_rank", "_order")
    )
    overall = first.select("feature").with_row_index("overall_rank", offset=1)
    table = table.join(overall.with_columns(pl.col("overall_rank").cast(pl.Int64)), on="feature")
    return table.sort("_order").select(_COLUMNS)


def methods_of(table: pl.DataFrame) -> list[str]:
    """The methods that measured something."""
    return [m for m in METHODS if table[m].is_not_null().any()]


def merge_importance(tables: Sequence[tuple[float, pl.DataFrame]]) -> pl.DataFrame:
    """One table of several members: weighted means of what the methods found, ranked anew.

    A member that lacks a value is left out of that mean. The spread of the permutation is the quadratic mean.
    p-values are put together by Cauchy's combination, which holds for members that share genes (Y. Liu, J. Xie, JASA
    2020); q-values are found anew.
    """
    both = _weighted(tables)
    mean = [_mean(pl.col(m)).alias(m) for m in _MEANS]
    spread = (_mean(pl.col("permutation_sd") ** 2) ** 0.5).alias("permutation_sd")
    p = pl.col("p_value")
    # cot(pi p) is a standard Cauchy value; p = 1 would have no finite one.
    combined = pl.arctan2(pl.lit(1.0), _mean(1 / (p.clip(1e-300, 0.99) * np.pi).tan())) / np.pi
    note = pl.col("permutation_note")
    same = pl.col("permutation").is_null().all() | (note.n_unique() == 1)
    note = pl.when(same).then(note.first()).otherwise(pl.lit(""))
    merged = both.group_by("class", "feature", maintain_order=True).agg(
        pl.col("group").first(), *mean, spread, note.alias("permutation_note"),
        combined.clip(p.min(), p.max()).alias("p_value"),
    )  # fmt: skip
    by_class = merged.partition_by("class", maintain_order=True)
    return ranked(pl.concat([with_q(part) for part in by_class]))


def merge_groups(tables: Sequence[tuple[float, pl.DataFrame]]) -> pl.DataFrame:
    """As `merge_importance`, of the tables of groups."""
    means = ("gain_share", "shap", "shap_share", "permutation", "permutation_ap")
    return (
        _weighted(tables)
        .group_by("class", "group", maintain_order=True)
        .agg(
            pl.col("features").max(), *(_mean(pl.col(m)).alias(m) for m in means),
            (_mean(pl.col("permutation_sd") ** 2) ** 0.5).alias("permutation_sd"),
        )
    )  # fmt: skip


def with_q(part: pl.DataFrame) -> pl.DataFrame:
    """q-values from the p-values of one class."""
    q = false_discoveries(part["p_value"].cast(pl.Float64).fill_null(float("nan")).to_numpy())
    return part.with_columns(pl.Series("q_value", q).fill_nan(None))


def agreement(table: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    """Spearman's correlation between the methods, mean over classes; over the features that a model splits on.

    The others would agree by all being 0. Features that a method did not measure are left out of its pairs; NaN
    with fewer than three features, or when a method finds them all alike.
    """
    methods = methods_of(table)
    found = []
    for part in table.filter(pl.col("gain") > 0).partition_by("class"):
        values = part.with_columns(pl.col("effect_size").abs()).select(methods).cast(pl.Float64).fill_null(float("nan"))
        found.append([[_spearman(values[a].to_numpy(), values[b].to_numpy()) for b in methods] for a in methods])
    each = np.array(found, dtype=np.float64).reshape(-1, len(methods), len(methods))
    known = np.isfinite(each)
    total = np.where(known, each, 0).sum(axis=0)
    return methods, np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _weighted(tables: Sequence[tuple[float, pl.DataFrame]]) -> pl.DataFrame:
    if not tables or any(w <= 0 for w, _ in tables):
        raise ValueError("members to merge, each of a weight above 0")
    return pl.concat([t.with_columns(_member=pl.lit(float(w))) for w, t in tables], how="vertical_relaxed")


def _mean(value: pl.Expr) -> pl.Expr:
    """Weighted mean over members, null ones left out; null when all are."""
    weight = pl.when(value.is_not_null()).then(pl.col("_member"))
    mean = (value * pl.col("_member")).sum() / weight.sum()
    return pl.when(value.is_not_null().any()).then(mean)
