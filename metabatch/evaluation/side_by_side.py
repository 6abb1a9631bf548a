"""The numbers of several runs on their common rows, one run in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metabatch.analysis.comparison import base_metrics, draw_groups
from metabatch.analysis.scored import ScoredRows
from metabatch.ensemble.bundle import missing_text
from metabatch.evaluation.common_rows import CommonRows, scored_genes
from metabatch.evaluation.evaluated import Evaluated, cost
from metabatch.evaluation.recommendation import Candidate, difference, recommend
from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, interval
from metabatch.metrics.classification import all_metrics
from metabatch.resources.progress import Progress


def compare_runs(runs: Sequence[Evaluated]) -> dict[str, Any]:
    """The content of comparison.json (docs/file-formats.md); errors are those of `CommonRows`."""
    first = runs[0]
    common = CommonRows.of(runs)
    columns, rows = first.plan.columns, common.rows
    draws = draw_groups(rows, first.plan.seed)
    told: list[dict[str, Any]] = []
    samples: list[dict[str, np.ndarray]] = []
    candidates = []
    with Progress("against", (len(runs) + 1) * len(columns.classes), "rankings") as progress:
        base = base_metrics(rows, columns.classes)
        drawn = _sampled(rows.base, rows, base["classes"], columns.classes, draws, progress)
        of_base = _told(base, drawn, len(columns.classes))
        for e in runs:
            proba = common.scores(e)
            metrics = all_metrics(proba, rows.label, rows.weight, columns.classes)
            samples.append(_sampled(proba, rows, metrics["classes"], columns.classes, draws, progress))
            its, expense = _told(metrics, samples[-1], len(columns.classes)), cost(e)
            told.append({
                "name": e.name, "path": str(e.run.root), "strategy": e.bundle.strategy,
                "fingerprint": e.plan.fingerprint, "how": e.metrics["how"], "genes_scored": len(scored_genes(e)),
                "rows_scored": e.metrics["rows"], **its,
                "difference": None if e is first else _differences(told[0], its, samples[0], samples[-1]),
                "cost": expense,
            })  # fmt: skip
            candidates.append(
                Candidate(
                    name=e.name,
                    macro_ap=its["macro"]["ap"],
                    sampled=_macro(samples[-1]),
                    peak_bytes=expense["peak_anonymous_bytes"],
                    is_exact=e.is_exact,
                    is_ensemble=e.plan.strategy == "multi-instance",
                )
            )
    return {
        "format_version": 1, "genes": len(common.genes), "rows": len(rows), "classes": list(columns.classes),
        "weighted_by": columns.weight, "joined_by": ["gene_id", *(common.key_columns or ["order of the rows"])],
        "bootstrap": {
            "unit": columns.split or columns.group, "groups": draws.shape[1], "resamples": draws.shape[0],
            "interval": "central 95 %",
        },
        "base": of_base, "runs": told, "recommendation": recommend(candidates), "notes": _notes(runs),
    }  # fmt: skip


def _sampled(
    proba: np.ndarray, rows: ScoredRows, metrics: dict[str, dict[str, Any]], classes: Sequence[str],
    draws: np.ndarray, progress: Progress,
) -> dict[str, np.ndarray]:  # fmt: skip
    """AP of each class in each resample; adds the intervals to the classes' metrics."""
    values: dict[str, np.ndarray] = {}
    for code, name in enumerate(classes):
        if name in metrics:
            ranking = {name: Ranking.of(proba[:, code], rows.label == code)}
            values |= bootstrap_ap(ranking, rows.weight, rows.group, draws)
            metrics[name]["ci95"] = {"ap": interval(values[name])}
        progress.advance()
    return values


def _told(metrics: dict[str, Any], sampled: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    """classes: class -> metrics; macro: means over all `number` classes, None where one lacks."""
    complete = len(metrics["classes"]) == number
    macro = metrics["macro"] if complete else dict.fromkeys(metrics["macro"])
    ci = interval(_macro(sampled)) if macro["ap"] is not None else None
    return {"classes": metrics["classes"], "macro": macro | {"log_loss": metrics.get("log_loss"), "ci95": {"ap": ci}}}


def _macro(sampled: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(list(sampled.values()), axis=0))


def _differences(
    first: dict[str, Any], other: dict[str, Any], drawn: dict[str, np.ndarray], its: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The other run less the first, in the same resamples."""
    return {
        "classes": {
            name: difference(m["ap"], other["classes"][name]["ap"], its[name] - drawn[name])
            for name, m in first["classes"].items()
        },
        "macro": difference(first["macro"]["ap"], other["macro"]["ap"], _macro(its) - _macro(drawn)),
    }


def _notes(runs: Sequence[Evaluated]) -> list[str]:
    """What else than their models makes the runs unlike."""
    plans = [e.plan for e in runs]
    unlike = (
        ([e.scoring for e in runs],
         "The runs were scored in different ways (see how): a difference can come from that."),
        ([p.columns.split for p in plans],
         "The runs keep different groups whole; intervals resample those of the first."),
        ([p.options.prior for p in plans],
         "The probabilities are at different prevalences (--prior): ECE, Brier score and log loss differ by that too."),
        ([p.columns.scores for p in plans],
         "The runs name different base scores (--score-columns); the base model is that of the first."),
        ([p.options.analyses for p in plans],
         "The runs made different analyses, which count in their peaks, not in their seconds."),
    )  # fmt: skip
    notes = [text for values, text in unlike if any(v != values[0] for v in values)]
    for e in runs:
        if e.bundle.missing:
            notes.append(f"{e.name}: {missing_text(e.bundle)}.")
        if e.plan.teacher is not None:
            notes.append(f"{e.name} is a student: what its teacher cost is not in its cost.")
            if not e.plan.holdout.genes:
                notes.append(f"{e.name}: its teacher knew the genes it is scored on, so its AP is too high.")
        parts = max(u.parts for u in e.usages)
        if parts > 1:
            notes.append(f"{e.name}: memory did not suffice, and genes of an instance were trained in {parts} parts.")
        restored = sum(u.restored_boosters + (u.restored_rounds > 0) for u in e.usages)
        if restored:
            notes.append(f"{e.name}: its training seconds are too few, {restored} booster(s) came from checkpoints.")
    return notes
