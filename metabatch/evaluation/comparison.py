"""Base and meta-model side by side on the scored rows: metrics and gene-bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval
from metabatch.metrics.classification import all_metrics
from metabatch.rundir.manifests import Plan

_MOST_RESAMPLES, _LEAST_RESAMPLES, _ROW_DRAWS = 1000, 200, 100_000_000


@dataclass(frozen=True)
class ScoredRows:
    """The scored rows in memory: narrow columns only.

    base, meta : float, shape (n, k); base is NaN in columns without a base score.
    group : int, shape (n,): the resampling unit (split group, else gene).
    """

    gene: np.ndarray
    group: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    base: np.ndarray
    meta: np.ndarray
    gene_names: list[str]


def load_scored(path: Path, plan: Plan, groups: dict[str, str]) -> ScoredRows:
    """Read predictions.parquet (or out-of-fold rows of the same columns).

    Parameters
    ----------
    groups : dict
        gene_id -> resampling unit.
    """
    classes = plan.columns.classes
    scores = [f"{c}_score" for c in plan.columns.scores]
    frame = pl.read_parquet(path, columns=["gene_id", "label", "weight", *scores, *(f"{c}_meta" for c in classes)])
    return scored_rows(frame, plan, groups)


def scored_rows(frame: pl.DataFrame, plan: Plan, groups: dict[str, str]) -> ScoredRows:
    """A frame of gene_id, label, weight, `{class}_score`, `{class}_meta` as arrays."""
    classes = plan.columns.classes
    names = frame["gene_id"].unique().sort()
    units = sorted({groups[g] for g in names})
    unit_code = {u: i for i, u in enumerate(units)}
    codes = frame.select(
        pl.col("gene_id")
        .replace_strict(names, pl.int_range(len(names), eager=True), return_dtype=pl.Int64)
        .alias("gene"),
        pl.col("gene_id")
        .replace_strict({g: unit_code[groups[g]] for g in names}, return_dtype=pl.Int64)
        .alias("group"),
        pl.col("label").replace_strict(list(classes), list(range(len(classes))), return_dtype=pl.Int64),
    )
    base = np.full((frame.height, len(classes)), np.nan)
    meta = np.empty((frame.height, len(classes)))
    for i, name in enumerate(classes):
        if name in plan.columns.scores:
            base[:, i] = frame[f"{name}_score"].fill_null(float("nan")).to_numpy()
        meta[:, i] = frame[f"{name}_meta"].to_numpy()
    return ScoredRows(
        gene=codes["gene"].to_numpy(),
        group=codes["group"].to_numpy(),
        label=codes["label"].to_numpy(),
        weight=frame["weight"].cast(pl.Float64).to_numpy(),
        base=base,
        meta=meta,
        gene_names=names.to_list(),
    )


def compare(rows: ScoredRows, plan: Plan, members: dict[int, Path]) -> dict[str, Any]:
    """Metrics of base, meta and members per class, with intervals and paired differences.

    Returns
    -------
    dict
        base, meta: class -> metrics with ci95, genes, rows; members: index -> the same; difference: class ->
        ap (meta - base), ci95, verdict; summary: accuracy, macro, confusion, log loss of base and meta.
    """
    classes = plan.columns.classes
    genes = len(rows.gene_names)
    draws = _draws(rows, plan.seed)
    meta = all_metrics(rows.meta, rows.label, rows.weight, classes)
    base = _base_metrics(rows, classes)
    result: dict[str, Any] = {
        "base": base["classes"], "base_missing": _base_missing(rows, plan),
        "meta": meta["classes"], "members": {}, "difference": {},
        "summary": {"base": _rest(base), "meta": _rest(meta)},
        "bootstrap": {
            "unit": plan.columns.split or plan.columns.group, "groups": draws.shape[1],
            "resamples": draws.shape[0], "interval": "central 95 %",
        },
    }  # fmt: skip
    for code, name in enumerate(classes):
        positive = rows.label == code
        rankings = {"meta": Ranking.of(rows.meta[:, code], positive)}
        if name in base["classes"]:
            rankings["base"] = Ranking.of(rows.base[:, code], positive)
        sampled = bootstrap_ap(rankings, rows.weight, rows.group, draws)
        for which in rankings:
            result[which][name] |= {"ci95": {"ap": interval(sampled[which])}, "genes": genes}
        if "base" in rankings:
            result["difference"][name] = _difference(
                base["classes"][name]["ap"], meta["classes"][name]["ap"], interval(sampled["meta"] - sampled["base"])
            )
    for member, path in members.items():
        result["members"][str(member)] = _member_metrics(pl.read_parquet(path), rows, plan, draws)
    return result


def _member_metrics(own: pl.DataFrame, rows: ScoredRows, plan: Plan, draws: np.ndarray) -> dict[str, Any]:
    proba = own.to_numpy()
    may = ~np.isnan(proba[:, 0])
    if not may.any():
        return {}
    found = all_metrics(proba[may], rows.label[may], rows.weight[may], plan.columns.classes)["classes"]
    for code, name in enumerate(plan.columns.classes):
        ranking = {"member": Ranking.of(proba[may, code], rows.label[may] == code)}
        sampled = bootstrap_ap(ranking, rows.weight[may], rows.group[may], draws)
        found[name] |= {
            "ci95": {"ap": interval(sampled["member"])}, "genes": len(np.unique(rows.gene[may])),
        }  # fmt: skip
    return dict(found)


def _base_metrics(rows: ScoredRows, classes: tuple[str, ...]) -> dict[str, Any]:
    known = rows.base[~np.isnan(rows.base)]
    probability = bool(known.size) and bool(((known >= 0) & (known <= 1)).all())
    return all_metrics(rows.base, rows.label, rows.weight, classes, probability=probability)


def _base_missing(rows: ScoredRows, plan: Plan) -> dict[str, int]:
    """Rows without a base score, per class that has a base score column: such a class cannot be compared."""
    counts = {c: int(np.isnan(rows.base[:, i]).sum()) for i, c in enumerate(plan.columns.classes)}
    return {c: n for c, n in counts.items() if n and c in plan.columns.scores}


def _rest(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if k != "classes"}


def _draws(rows: ScoredRows, seed: int) -> np.ndarray:
    groups = int(rows.group.max()) + 1
    resamples = int(np.clip(_ROW_DRAWS // max(1, len(rows.label)), _LEAST_RESAMPLES, _MOST_RESAMPLES))
    return group_multiplicities(groups, resamples, seed)


def _difference(base: float | None, meta: float | None, ci: tuple[float, float] | None) -> dict[str, Any]:
    if base is None or meta is None:
        return {"ap": None, "ci95": None, "verdict": "undefined: the class is absent"}
    if ci is not None and ci[0] > 0:
        text = "better than its base"
    elif ci is not None and ci[1] < 0:
        text = "worse than its base"
    else:
        text = "not distinguishable from its base"
    return {"ap": meta - base, "ci95": ci, "verdict": text}


def per_gene(rows: ScoredRows, plan: Plan) -> pl.DataFrame:
    """Per gene: rows, rows per class, log loss of base and meta, decisions fixed and introduced by the meta-model."""
    classes = plan.columns.classes
    here = np.arange(len(rows.label))
    base_known = not np.isnan(rows.base).any()
    frame = pl.DataFrame({"code": rows.gene, "label": rows.label, "weight": rows.weight})
    frame = frame.with_columns(meta_loss=-np.log(np.clip(rows.meta[here, rows.label], 1e-7, 1)))
    aggregates = [
        pl.len().alias("rows"),
        *((pl.col("label") == i).sum().alias(f"n_{c}") for i, c in enumerate(classes)),
    ]
    mean = pl.col("weight").sum()
    aggregates.append(((pl.col("meta_loss") * pl.col("weight")).sum() / mean).alias("meta_log_loss"))
    if base_known:
        right_base = rows.base.argmax(axis=1) == rows.label
        right_meta = rows.meta.argmax(axis=1) == rows.label
        frame = frame.with_columns(
            base_loss=-np.log(np.clip(rows.base[here, rows.label], 1e-7, 1)),
            fixed=right_meta & ~right_base,
            introduced=right_base & ~right_meta,
        )
        aggregates.append(((pl.col("base_loss") * pl.col("weight")).sum() / mean).alias("base_log_loss"))
        aggregates += [
            pl.col("fixed").sum().alias("errors_fixed"),
            pl.col("introduced").sum().alias("errors_introduced"),
        ]
    names = pl.DataFrame({"code": range(len(rows.gene_names)), "gene_id": rows.gene_names}).cast({"code": pl.Int64})
    return names.join(frame.group_by("code").agg(aggregates), on="code").sort("gene_id").drop("code")
