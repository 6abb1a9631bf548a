"""Base and meta-model side by side on the scored rows: metrics and gene-bootstrap intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval
from metabatch.metrics.classification import all_metrics
from metabatch.metrics.thresholds import at_threshold
from metabatch.rundir.manifests import Plan

_MOST_RESAMPLES, _LEAST_RESAMPLES, _ROW_DRAWS = 1000, 200, 100_000_000


def compare(
    rows: ScoredRows, plan: Plan, members: dict[int, Path], thresholds: dict[str, float] | None = None, *,
    resamples: int = _MOST_RESAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Metrics of base, meta and members per class, with intervals and paired differences.

    Parameters
    ----------
    thresholds : dict, optional
        class -> threshold that was chosen on other genes: meta gets `at_threshold` of these rows.
    resamples : int
        At most, for the intervals; fewer where there are very many rows.

    Returns
    -------
    dict
        base, meta: class -> metrics with ci95, genes, rows; members: index -> the same; difference: class ->
        ap (meta - base), ci95, verdict; summary: accuracy, macro, confusion, log loss of base and meta.
    """
    classes = plan.columns.classes
    genes = len(rows.gene_names)
    draws = draw_groups(rows, plan.seed, resamples)
    meta = all_metrics(rows.meta, rows.label, rows.weight, classes)
    base = base_metrics(rows, classes)
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
        if thresholds and name in thresholds:
            found = at_threshold(rows.meta[:, code], positive, rows.weight, thresholds[name])
            result["meta"][name]["at_threshold"] = found
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


def base_metrics(rows: ScoredRows, classes: tuple[str, ...]) -> dict[str, Any]:
    """As `all_metrics`, of the base scores; classes without one in every row are left out."""
    known = rows.base[~np.isnan(rows.base)]
    probability = bool(known.size) and bool(((known >= 0) & (known <= 1)).all())
    return all_metrics(rows.base, rows.label, rows.weight, classes, probability=probability)


def _base_missing(rows: ScoredRows, plan: Plan) -> dict[str, int]:
    """Rows without a base score, per class that has a base score column: such a class cannot be compared."""
    counts = {c: int(np.isnan(rows.base[:, i]).sum()) for i, c in enumerate(plan.columns.classes)}
    return {c: n for c, n in counts.items() if n and c in plan.columns.scores}


def _rest(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if k != "classes"}


def draw_groups(rows: ScoredRows, seed: int, most: int = _MOST_RESAMPLES) -> np.ndarray:
    """How often each resampling unit is drawn, shape (resamples, groups); fewer resamples of very many rows."""
    groups = int(rows.group.max()) + 1
    resamples = min(most, max(_LEAST_RESAMPLES, _ROW_DRAWS // max(1, len(rows.label))))
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
