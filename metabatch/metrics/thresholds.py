"""Decisions "score >= threshold" of one class against the rest, weighted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metabatch.metrics.bootstrap import Ranking


@dataclass(frozen=True)
class OperatingPoints:
    """Every distinct score as a threshold, from the highest down; float64 arrays of shape (t,) but `called_rows`.

    called : weight of the rows called. called_rows : their number.
    """

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    called: np.ndarray
    called_rows: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> OperatingPoints | None:
        """None where the class has no weight, or all of it."""
        ranking = Ranking.of(score, positive)
        hits, called = _sums(ranking, weight)
        if not 0 < hits[-1] < called[-1]:
            return None
        return cls(
            threshold=score[ranking.order][ranking.ends].astype(np.float64),
            precision=np.divide(hits, called, out=np.ones_like(hits), where=called > 0),
            recall=hits / hits[-1],
            f1=2 * hits / (called + hits[-1]),
            called=called,
            called_rows=ranking.ends + 1,
        )

    def best(self) -> int:
        """The highest threshold with the best F1."""
        return int(self.f1.argmax())

    def at_precision(self, least: float) -> int | None:
        """The threshold of the highest recall among those with this precision; None where it is not reached."""
        reached = np.flatnonzero((self.precision >= least) & (self.recall > 0))
        return int(reached[self.recall[reached].argmax()]) if len(reached) else None

    def at_recall(self, least: float) -> int | None:
        """The highest threshold with this recall."""
        reached = np.flatnonzero(self.recall >= least)
        return int(reached[0]) if len(reached) else None

    def thinned(self, most: int) -> np.ndarray:
        """Positions of about `most` points, evenly spread over the recall and over the rows called."""
        last = len(self.recall) - 1
        by_recall = np.searchsorted(self.recall, np.linspace(0, 1, most // 2)).clip(max=last)
        by_rows = np.searchsorted(self.called_rows, np.geomspace(1, self.called_rows[-1], most // 2)).clip(max=last)
        return np.unique(np.concatenate([by_recall, by_rows, [0, last]]))


def decisions(score: np.ndarray, positive: np.ndarray, weight: np.ndarray, threshold: float) -> np.ndarray:
    """Weights of true positives, false positives and false negatives, shape (3,)."""
    called = score >= threshold
    kinds = (called & positive, called & ~positive, ~called & positive)
    return np.array([weight[k].sum() for k in kinds], dtype=np.float64)


def at_threshold(
    score: np.ndarray, positive: np.ndarray, weight: np.ndarray, threshold: float
) -> dict[str, float | None]:
    """threshold, precision (None without calls), recall, f1 (None without positives)."""
    hit, false, missed = decisions(score, positive, weight, threshold)
    return {
        "threshold": threshold,
        "precision": float(hit / (hit + false)) if hit + false else None,
        "recall": float(hit / (hit + missed)) if hit + missed else None,
        "f1": f1_of(hit, false, missed) if hit + missed else None,
    }


def f1_of(hit: float, false: float, missed: float) -> float:
    """F1 of weights of decisions; NaN where there is nothing."""
    total = 2 * hit + false + missed
    return float(2 * hit / total) if total else float("nan")


def resampled_best(ranking: Ranking, score: np.ndarray, weight: np.ndarray) -> float:
    """The threshold of the best F1 under other weights, in the row order of `score`; NaN without positives."""
    hits, called = _sums(ranking, weight)
    if hits[-1] <= 0:
        return float("nan")
    return float(score[ranking.order[ranking.ends[(hits / (called + hits[-1])).argmax()]]])


def _sums(ranking: Ranking, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drawn = weight[ranking.order]
    return np.cumsum(drawn * ranking.positive)[ranking.ends], np.cumsum(drawn)[ranking.ends]
