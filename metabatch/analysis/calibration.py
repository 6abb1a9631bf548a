"""Do the probabilities hold on genes their calibration was not fitted on, and did calibrating help?

Before: the boosters' one-vs-rest score. After: calibrated and normalised, each fold by a calibration of the other
folds. What is computed stands in calibration_metrics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from metabatch.analysis.calibration_figures import curves, picture
from metabatch.analysis.calibration_metrics import METRICS, Judged, Span, judge
from metabatch.analysis.frame import Cell, Found, ImpossibleError, Shown
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import group_multiplicities
from metabatch.metrics.classification import ECE_BINS
from metabatch.models.calibration import EPS, prior_ratios
from metabatch.rundir.layout import class_stems

# At most this many (resample, group) counts in memory: 32 MB.
_MOST_RESAMPLES, _LEAST_RESAMPLES, _DRAWS = 1000, 200, 4_000_000
_BOTH = ("before", "after")


def calibration(
    rows: ScoredRows, classes: Sequence[str], *, method: str, seed: int, prior: Mapping[str, float] | None = None
) -> Found:
    """Reliability before and after calibration, on genes not used to fit it.

    Parameters
    ----------
    method : str
        The run's `--calibration`, for the words.
    prior : mapping, optional
        The run's `--prior`: rows are then weighted to that prevalence, at which the probabilities are meant.

    Raises
    ------
    ImpossibleError
        No scores before calibration, one group only, or no class that occurs beside another.
    """
    if rows.raw is None:
        raise ImpossibleError("there are no scores before calibration: these are not out-of-fold rows")
    groups = int(rows.group.max()) + 1 if len(rows) else 0
    if groups < 2:
        raise ImpossibleError("all rows are of one gene or split group: it cannot be resampled")
    weight = rows.weight
    if prior:
        weight = weight * np.array(prior_ratios(rows.label, rows.weight, classes, prior))[rows.label]
    total = weight.sum()
    judged, tables, pictures, left_out = {}, [], [], []
    resamples = int(np.clip(_DRAWS // groups, _LEAST_RESAMPLES, _MOST_RESAMPLES))
    times = group_multiplicities(groups, resamples, seed).astype(np.float64)
    for code, (name, stem) in enumerate(zip(classes, class_stems(classes), strict=True)):
        positive = rows.label == code
        if not 0 < weight[positive].sum() < total:
            left_out.append(name)
            continue
        before, after = (np.clip(p[:, code].astype(np.float64), EPS, 1 - EPS) for p in (rows.raw, rows.meta))
        judged[name] = judge(before, after, positive, weight, rows.group, times)
        curve = curves({"before": before, "after": after}, positive, weight)
        tables.append(curve.select(pl.lit(name).alias("class"), pl.all()))
        pictures.append(picture(name, stem, curve, rows=len(rows), positives=int(positive.sum()), how=method))
    if not judged:
        raise ImpossibleError("no class occurs beside another in these rows")
    by_prior = ", weighted to the prevalence of --prior" if prior else ""
    return Found(
        on=f"out-of-fold scores: {rows.described()}; calibration {method}, fitted for each fold on the other folds' "
        f"genes{by_prior}",
        says=_says(judged, left_out),
        flags=_flags(judged),
        facts={
            "method": method, "bins": ECE_BINS, "resamples": len(times), "groups": groups, "left_out": left_out,
            "classes": {name: _facts(j) for name, j in judged.items()},
        },
        shown=_shown(judged),
        tables={"calibration-curves": pl.concat(tables)},
        pictures=pictures,
    )  # fmt: skip


def _says(judged: Mapping[str, Judged], left_out: Sequence[str]) -> list[str]:
    def change(name: str, j: Judged, metric: str) -> str:
        difference, span = j.change[metric]
        return (
            f"{name} {j.before[metric]:.3g} before, {j.after[metric]:.3g} after "
            f"(difference {difference:+.3g}, 95 % interval {_words(span)})"
        )

    says = [
        f"{METRICS[m]}: " + "; ".join(change(n, j, m) for n, j in judged.items()) + "." for m in ("ece", "log_loss")
    ]
    slopes = (f"{n} {j.slope[0]:.2f} ({_words(j.slope[1])}), {j.confidence}" for n, j in judged.items())
    says.append("Calibration slope after (1 holds; below: too sure of itself): " + "; ".join(slopes) + ".")
    if left_out:
        says.append(f"Not judged, because these rows hold nothing or nothing else of it: {', '.join(left_out)}.")
    return says


def _flags(judged: Mapping[str, Judged]) -> list[str]:
    flags = []
    for name, j in judged.items():
        if j.verdict == "worse":
            difference, span = j.change["log_loss"]
            flags.append(
                f"{name}: calibration raises the log loss by {difference:.3g} (95 % interval {_words(span)}) "
                "on genes it was not fitted on."
            )
        if j.confidence == "overconfident":
            flags.append(
                f"{name}: overconfident after calibration, slope {j.slope[0]:.2f} "
                f"(95 % interval {_words(j.slope[1])}): probabilities lie too near 0 and 1."
            )
    return flags


def _facts(j: Judged) -> dict[str, object]:
    facts: dict[str, object] = {"rows": j.rows, "positives": j.positives, "prevalence": j.share, "mean_after": j.mean}
    for metric in METRICS:
        difference, span = j.change[metric]
        facts |= {f"{metric}_{when}": value[metric] for when, value in zip(_BOTH, (j.before, j.after), strict=True)}
        facts |= {f"{metric}_difference": difference, f"{metric}_difference_ci95": span}
    facts |= {"slope": j.slope[0], "slope_ci95": j.slope[1]}
    facts |= {"intercept": j.intercept[0], "intercept_ci95": j.intercept[1]}
    return facts | {"verdict": j.verdict, "confidence": j.confidence}


def _shown(judged: Mapping[str, Judged]) -> list[Shown]:
    changes: list[tuple[Cell, ...]] = [
        (name, words, j.before[m], j.after[m], j.change[m][0], _words(j.change[m][1]))
        for name, j in judged.items()
        for m, words in METRICS.items()
    ]
    sure: list[tuple[Cell, ...]] = [
        (n, j.rows, j.positives, j.share, j.mean, j.slope[0], _words(j.slope[1]), j.intercept[0], j.confidence)
        for n, j in judged.items()
    ]
    return [
        Shown(
            title="Before and after calibration",
            columns=("class", "metric", "before", "after", "difference", "95 % interval of the difference"),
            kinds=("text", "text", "small", "small", "small", "text"),
            rows=tuple(changes),
            note="Lower is better. Whole genes (or split groups) resampled; pivotal interval for ECE (2 x found - "
            "resampled), because the noise of a resample raises ECE. ECE: 15 bins of equal width.",
        ),
        Shown(
            title="Overconfident? Outcome regressed on the log-odds of the calibrated probability (Cox 1958)",
            columns=("class", "rows", "positives", "prevalence", "mean probability", "slope", "95 % interval",
                     "intercept", "probabilities"),
            kinds=("text", "count", "count", "small", "small", "number", "text", "number", "text"),
            rows=tuple(sure),
            note="Slope 1 and intercept 0 hold. Overconfident: interval of the slope wholly below 1 (under-: above).",
        ),
    ]  # fmt: skip


def _words(span: Span) -> str:
    return "none" if span is None else f"{span[0]:.3g} to {span[1]:.3g}"
