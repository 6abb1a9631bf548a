"""How many trees a student needs: the fewest whose AP on held-out rows is all but that of the best number.

The rows are those of the fold whose model is kept, the AP is of their true labels. Scores after so many rounds are
looked at while the fold grows, where they cost no prediction. That fold comes first; the others grow as many trees as
it chose, and all out-of-fold scores are of models of that size: a few trees keep closer to a probability of a half than
many, so that a calibration fitted on larger models would not fit the delivered one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metabatch.metrics.classification import average_precision

# What a student may lose in AP against the best of the sizes tried, and how many are.
STUDENT_AP_LOSS, SIZES, SMALLEST = 0.002, 12, 10


def sizes_to_try(limit: int) -> list[int]:
    """Numbers of trees up to `limit`, each larger by about the same factor."""
    return sorted({round(float(x)) for x in np.geomspace(min(SMALLEST, limit), limit, SIZES)})


class SizeTable:
    """Weighted AP of the held-out rows at some numbers of trees; float32, as checkpoints keep it.

    It is that of the rarer side: a class that most rows are of (neither) has an AP of nearly 1 with any number of
    trees, while the other classes' probabilities are divided by a sum that it is part of.

    positive, weight : of the held-out rows.
    """

    def __init__(self, tried: Sequence[int], positive: np.ndarray, weight: np.ndarray) -> None:
        common = weight[positive].sum() > weight.sum() / 2
        self._sign, self._positive = (-1, ~positive) if common else (1, positive)
        self._tried, self._weight = frozenset(tried), weight
        self._found: dict[int, np.float32] = {}

    def resume(self, arrays: tuple[np.ndarray, np.ndarray]) -> None:
        """Go on from what a checkpoint kept."""
        self._found = {int(n): np.float32(ap) for n, ap in zip(*arrays, strict=True)}

    def look(self, scores: np.ndarray, trees: int) -> None:
        """`scores`: of the held-out rows, after so many trees."""
        if trees in self._tried:
            self._found[trees] = self._ap(scores)

    def close(self, scores: np.ndarray, trees: int) -> None:
        """`scores` of the fold's best round, the largest size that counts."""
        if self._tried:
            self._found = {n: ap for n, ap in self._found.items() if n < trees}
            self._found[trees] = self._ap(scores)

    def _ap(self, scores: np.ndarray) -> np.float32:
        return np.float32(average_precision(self._sign * scores, self._positive, self._weight))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of trees and their AP, float32."""
        found = sorted(self._found.items())
        return np.array([n for n, _ in found], dtype=np.float32), np.array([ap for _, ap in found], dtype=np.float32)


def chosen_size(trees: np.ndarray, ap: np.ndarray) -> int:
    """The fewest trees whose AP is at most `STUDENT_AP_LOSS` below the best."""
    counts, found = _rounded(trees, ap)
    least = max(found) - STUDENT_AP_LOSS
    return min(n for n, value in zip(counts, found, strict=True) if value >= least)


def _rounded(trees: np.ndarray, ap: np.ndarray) -> tuple[list[int], list[float]]:
    """As metrics.json has them."""
    return [int(n) for n in trees], [float(f"{x:.6g}") for x in ap]


def size_record(trees: np.ndarray, ap: np.ndarray, fold: int) -> dict[str, Any]:
    """For metrics.json: what was tried on which fold, and what was chosen."""
    counts, found = _rounded(trees, ap)
    return {
        "fold": fold, "trees": counts, "ap": found, "most_loss": STUDENT_AP_LOSS, "chosen": chosen_size(trees, ap),
    }  # fmt: skip


def size_line(sizes: dict[str, dict[str, Any]]) -> str:
    """In words, for the report."""
    parts = []
    for name, found in sizes.items():
        best = max(found["ap"])
        taken = found["ap"][found["trees"].index(found["chosen"])]
        parts.append(f"{name} {found['chosen']} trees (AP {taken:.4f}; best of {len(found['ap'])} sizes {best:.4f})")
    return f"{'; '.join(parts)}: the fewest with at most {STUDENT_AP_LOSS:g} less AP on a held-out fold"
