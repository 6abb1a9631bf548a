"""Pearson's and Spearman's correlation of thousands of features, a block of columns against a block at a time.

Columns are standardised, so that the correlations of two blocks are one product of matrices, in float32. With missing
cells it is pairwise: over the rows where both are there, by sums over those. Ranks are then those of each column among
its own values, which is Spearman's correlation exactly where the same cells are missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import rankdata
from threadpoolctl import threadpool_limits

from metabatch.pruning.request import Correlation
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag

Kind = Literal["pearson", "spearman"]
# A standardised block, and most columns in one.
_BLOCK_BYTES, _BLOCK_COLUMNS = 24 << 20, 512


@dataclass(frozen=True)
class Redundant:
    """A feature that is correlated with one that is kept. r : signed."""

    feature: str
    against: str
    kind: Kind
    r: float


@dataclass(frozen=True)
class Block:
    """Standardised columns. z : float32, shape (n, c), 0 where missing; there : 0 or 1 likewise, None: all are."""

    z: np.ndarray
    there: np.ndarray | None


def standardised(columns: Sequence[np.ndarray], kind: Kind) -> Block:
    """Columns of n numbers (or their ranks) less their mean, by their standard deviation; of a constant one zeros."""
    z = np.zeros((len(columns[0]), len(columns)), np.float32)
    there: np.ndarray | None = None
    for number, column in enumerate(columns):
        gone = np.isnan(column)
        values = column[~gone].astype(np.float64)
        if kind == "spearman" and len(values):
            values = rankdata(values)
        if len(values) and (spread := values.std()) > 0:
            z[~gone, number] = (values - values.mean()) / spread
        if gone.any():
            there = np.ones(z.shape, np.float32) if there is None else there
            there[gone, number] = 0
    return Block(z, there)


def correlate(a: Block, b: Block) -> tuple[np.ndarray, np.ndarray]:
    """r of every column of `a` with every one of `b`, and the part of the rows where exactly one of them is missing.

    Both float32, shape (columns of a, columns of b). r is 0 where undefined.
    """
    rows = len(a.z)
    together = a.z.T @ b.z
    if a.there is None and b.there is None:
        return np.clip(together / rows, -1, 1), np.zeros_like(together)
    of_a, of_b = (np.ones_like(x.z) if x.there is None else x.there for x in (a, b))
    both = of_a.T @ of_b
    n = np.maximum(both, 1)
    sum_a, sum_b = a.z.T @ of_b, of_a.T @ b.z
    spread_a, spread_b = (a.z**2).T @ of_b - sum_a**2 / n, of_a.T @ (b.z**2) - sum_b**2 / n
    product = np.maximum(spread_a, 0) * np.maximum(spread_b, 0)
    # What is left of a sum of n squares by rounding is no spread.
    defined = np.minimum(spread_a, spread_b) > 1e-4 * n
    r = np.divide(together - sum_a * sum_b / n, np.sqrt(product), out=np.zeros_like(together), where=defined)
    differ = of_a.sum(axis=0)[:, None] + of_b.sum(axis=0)[None, :] - 2 * both
    return np.clip(r, -1, 1), differ / rows


@dataclass
class _Search:
    """Goes through the features in order of preference; one goes when a kept one before it says the same."""

    values: Mapping[str, np.ndarray]
    kinds: tuple[Kind, ...]
    above: float
    most_differing: float
    protected: Collection[str]
    kept: list[str] = field(default_factory=list)
    found: list[Redundant] = field(default_factory=list)

    def add(self, names: Sequence[str], size: int, stop: StopFlag) -> None:
        """Judge the next features; `size`: most columns of a block."""
        best: dict[str, Redundant] = {}
        inner = []
        for kind in self.kinds:
            mine = standardised([self.values[n] for n in names], kind)
            for start in range(0, len(self.kept), size):
                stop.check()
                others = self.kept[start : start + size]
                r = self._strong(standardised([self.values[n] for n in others], kind), mine)
                for at in map(int, np.flatnonzero(r.any(axis=0))):
                    strongest = int(np.abs(r[:, at]).argmax())
                    self._better(best, Redundant(names[at], others[strongest], kind, float(r[strongest, at])))
            inner.append((kind, self._strong(mine, mine)))
        kept = np.zeros(len(names), bool)
        for at, name in enumerate(names):
            for kind, r in inner:
                among = np.where(kept, np.abs(r[:, at]), 0)
                if among.any():
                    strongest = int(among.argmax())
                    self._better(best, Redundant(name, names[strongest], kind, float(r[strongest, at])))
            if name in best and name not in self.protected:
                self.found.append(best[name])
            else:
                kept[at] = True
        self.kept += [n for n, k in zip(names, kept, strict=True) if k]

    def _strong(self, a: Block, b: Block) -> np.ndarray:
        """r of the pairs that are redundant, 0 of the others."""
        r, differ = correlate(a, b)
        return np.where((np.abs(r) > self.above) & (differ <= self.most_differing), r, 0)

    def _better(self, best: dict[str, Redundant], new: Redundant) -> None:
        """Remember the strongest correlation of a feature; of equal ones the first."""
        old = best.get(new.feature)
        if old is None or abs(new.r) > abs(old.r):
            best[new.feature] = new


def redundant(
    names: Sequence[str], values: Mapping[str, np.ndarray], *, correlation: Correlation, above: float,
    most_differing: float, protected: Collection[str], stop: StopFlag,
) -> list[Redundant]:  # fmt: skip
    """The features to drop: those with |r| > `above` to one before them that is kept itself.

    Parameters
    ----------
    names : sequence of str
        In order of preference.
    values : mapping
        Feature -> ndarray of shape (n,), NaN where missing.
    most_differing : float
        Where one of two is missing and the other is not in more than this part of the rows, they do not say the same.
    protected : collection of str
        Never dropped.
    """
    kinds: tuple[Kind, ...] = ("pearson", "spearman") if correlation == "either" else (correlation,)
    search = _Search(values, kinds, above, most_differing, protected)
    if not names:
        return []
    size = int(np.clip(_BLOCK_BYTES // (4 * max(1, len(values[names[0]]))), 1, _BLOCK_COLUMNS))
    # With one thread a product does not depend on how many there are.
    with threadpool_limits(1, "blas"), Progress("correlation", len(names), "features") as progress:
        for part in _cut(names, size):
            search.add(part, size, stop)
            progress.advance(len(part))
    return search.found


def _cut(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
