"""Calibration metrics of one class before and after, with intervals by resampling whole groups.

What a metric needs is summed per group (and bin) beforehand: a resample is one row of a matrix product, not a pass
over the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from metabatch.metrics.bootstrap import interval
from metabatch.metrics.classification import ECE_BINS
from metabatch.models.calibration import log_losses, logit, logit_regression

METRICS = {"ece": "ECE", "brier": "Brier score", "log_loss": "log loss"}
Span = tuple[float, float] | None


@dataclass(frozen=True)
class Judged:
    """One class: its metrics before and after, and whether the probabilities after are too sure.

    before, after : ece, brier, log_loss. change : after - before, with its 95 % interval.
    slope, intercept : Cox's, of the probabilities after, with their 95 % intervals; slope 1 and intercept 0 hold.
    mean : mean probability after. share : prevalence. Both weighted.
    """

    rows: int
    positives: int
    before: dict[str, float]
    after: dict[str, float]
    change: dict[str, tuple[float, Span]]
    slope: tuple[float, Span]
    intercept: tuple[float, Span]
    mean: float
    share: float

    @property
    def verdict(self) -> str:
        """By the log loss: better, worse, or no difference shown."""
        span = self.change["log_loss"][1]
        if span is None or span[0] <= 0 <= span[1]:
            return "no difference shown"
        return "better" if span[1] < 0 else "worse"

    @property
    def confidence(self) -> str:
        """Overconfident or underconfident only where the slope's whole interval lies on one side of 1."""
        span = self.slope[1]
        if span is None:
            return "unknown"
        return "overconfident" if span[1] < 1 else "underconfident" if span[0] > 1 else "as it should be"


def judge(
    before: np.ndarray, after: np.ndarray, positive: np.ndarray, weight: np.ndarray, group: np.ndarray,
    times: np.ndarray,
) -> Judged:  # fmt: skip
    """Metrics of one class with intervals by resampling groups.

    Parameters
    ----------
    before, after : ndarray of float64, shape (n,)
        Probabilities within [1e-7, 1 - 1e-7].
    group : ndarray of int, shape (n,)
        Resampling unit of each row.
    times : ndarray of float64, shape (resamples, groups)
        How often each group is drawn.
    """
    count = times.shape[1]

    def per_group(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, weights=weight * values, minlength=count)[:, None]

    def per_bin(p: np.ndarray) -> np.ndarray:
        place = group.astype(np.int64) * ECE_BINS + np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        return np.bincount(place, weights=weight * (p - positive), minlength=count * ECE_BINS).reshape(count, ECE_BINS)

    slope, intercept = logit_regression(after, positive, weight)
    x = logit(after)
    fitted = 1 / (1 + np.exp(-(slope * x + intercept)))
    gap, information = positive - fitted, fitted * (1 - fitted)
    sums = np.hstack([
        per_group(np.ones(len(x))), per_bin(before), per_bin(after),
        per_group((before - positive) ** 2), per_group((after - positive) ** 2),
        per_group(log_losses(before, positive)), per_group(log_losses(after, positive)),
        per_group(gap * x), per_group(gap),
        per_group(information * x * x), per_group(information * x), per_group(information),
    ])  # fmt: skip
    with threadpool_limits(1):  # the last bit of a threaded product depends on the thread count
        resampled = _metrics(times @ sums)
    found = {name: float(v[0]) for name, v in _metrics(sums.sum(axis=0, keepdims=True)).items()}
    change = {}
    for metric in METRICS:
        difference = found[f"{metric}_after"] - found[f"{metric}_before"]
        drawn = resampled[f"{metric}_after"] - resampled[f"{metric}_before"]
        # ECE adds up absolute gaps, so that the noise of a resample raises it: the pivotal interval takes that off.
        span = interval(2 * difference - drawn if metric == "ece" else drawn)
        change[metric] = (difference, span)
    total = weight.sum()
    return Judged(
        rows=len(x),
        positives=int(positive.sum()),
        before={m: found[f"{m}_before"] for m in METRICS},
        after={m: found[f"{m}_after"] for m in METRICS},
        change=change,
        slope=(slope, interval(slope + resampled["slope"])),
        intercept=(intercept, interval(intercept + resampled["intercept"])),
        mean=float((weight * after).sum() / total),
        share=float(weight[positive].sum() / total),
    )


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each row of sums, shape (resamples, columns as `judge` lays them).

    slope, intercept : what one Newton step adds to them in a resample (the one-step bootstrap of L. H. Moulton and
    S. L. Zeger 1991), so that no resample needs a pass over the rows.
    """
    total = np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
    rest = sums[:, 1 + 2 * ECE_BINS :].T
    u, v, a, b, c = rest[4:]
    determinant = a * c - b * b
    safe = np.where(determinant > 1e-12 * a * c, determinant, np.nan)
    return {
        "ece_before": np.abs(sums[:, 1 : 1 + ECE_BINS]).sum(axis=1) / total,
        "ece_after": np.abs(sums[:, 1 + ECE_BINS : 1 + 2 * ECE_BINS]).sum(axis=1) / total,
        "brier_before": rest[0] / total, "brier_after": rest[1] / total,
        "log_loss_before": rest[2] / total, "log_loss_after": rest[3] / total,
        "slope": (c * u - b * v) / safe, "intercept": (a * v - b * u) / safe,
    }  # fmt: skip
