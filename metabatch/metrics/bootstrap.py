"""Intervals by resampling whole genes (or split groups): rows of a gene are not independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Rows in descending order of a score, prepared so that a resample costs one cumulative sum."""

    order: np.ndarray
    ends: np.ndarray
    positive: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, positive: np.ndarray) -> Ranking:
        order = np.argsort(-score, kind="stable")
        ranked = score[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        return cls(order, ends, positive[order].astype(np.float64))

    def average_precision(self, weight: np.ndarray) -> float:
        """Weighted AP, equal to scikit-learn's (ties share one threshold); NaN without positives.

        `weight` is in the original row order.
        """
        w = weight[self.order]
        total = np.cumsum(w)[self.ends]
        hits = np.cumsum(w * self.positive)[self.ends]
        if hits[-1] <= 0:
            return float("nan")
        precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return float((np.diff(hits, prepend=0.0) * precision).sum() / hits[-1])


def group_multiplicities(groups: int, resamples: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each resample, shape (resamples, groups)."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, groups, groups), minlength=groups) for _ in range(resamples)])


def bootstrap_ap(
    rankings: dict[str, Ranking], weight: np.ndarray, group: np.ndarray, draws: np.ndarray
) -> dict[str, np.ndarray]:
    """AP of each ranking in each resample; the same draws for all, so that differences are paired.

    Parameters
    ----------
    weight : ndarray of shape (n,)
    group : ndarray of int, shape (n,)
        Group code of each row.
    draws : ndarray of shape (resamples, groups)
    """
    result = {name: np.empty(len(draws)) for name in rankings}
    for i, times in enumerate(draws):
        drawn = weight * times[group]
        for name, ranking in rankings.items():
            result[name][i] = ranking.average_precision(drawn)
    return result


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The central 95 % of the defined values; None when fewer than half are defined."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(2, len(values) / 2):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
