"""A column in order of its values, once for all classes, and what its order alone tells of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranked:
    """n rows in order of v different values.

    rows : int, shape (n,): positions of the rows. code : int, shape (n,): which value each has.
    one_hot : int32, shape (n, k): class of each.
    values, counts : float64, shape (v,): the values, ascending, and their rows. hits : shape (k, v): of each class.
    """

    rows: np.ndarray
    code: np.ndarray
    one_hot: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    hits: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Part of the rows that are of each class, shape (k,)."""
        return self.hits.sum(axis=1) / max(1, len(self.rows))


def rank(values: np.ndarray, rows: np.ndarray, one_hot: np.ndarray) -> Ranked:
    """Rank `values`, shape (n,), none missing, of `rows`, shape (n,); `one_hot` is of all rows, shape (any, k)."""
    # Small integers are sorted by counting when the order is to be stable; of floats the other way is faster.
    order = np.argsort(values, kind=None if values.dtype.kind == "f" else "stable")
    ordered, rows = values[order], rows[order]
    mine = one_hot[rows]
    if not len(rows):
        return Ranked(rows, rows, mine, np.zeros(0), np.zeros(0), np.zeros((one_hot.shape[1], 0)))
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(new)
    hits = mine if len(starts) == len(rows) else np.add.reduceat(mine, starts, axis=0)
    return Ranked(
        rows=rows,
        code=np.cumsum(new) - 1,
        one_hot=mine,
        values=ordered[starts].astype(np.float64),
        counts=np.diff(starts, append=len(rows)).astype(np.float64),
        hits=np.ascontiguousarray(hits.T, dtype=np.float64),
    )


def auc_and_ap(column: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """ROC AUC of each class (above 0.5: by high values), and the AP of the better direction; NaN where undefined.

    As scikit-learn's `roc_auc_score` and `average_precision_score`, for all classes at once.
    """
    hits, counts = column.hits, column.counts
    all1 = hits.sum(axis=1)
    all0 = counts.sum() - all1
    defined = (all1 > 0) & (all0 > 0)
    others = counts - hits
    below = np.cumsum(others, axis=1) - others / 2
    auc = (hits * below).sum(axis=1) / np.where(defined, all1 * all0, np.nan)
    ap = np.zeros(len(all1))
    for step in (1, -1):
        found, seen = np.cumsum(hits[:, ::step], axis=1), np.cumsum(counts[::step])
        here = (hits[:, ::step] * (found / seen)).sum(axis=1) / np.where(defined, all1, np.nan)
        ap = np.maximum(ap, here)
    return auc, ap


def correlations(column: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's and Spearman's correlation with each class (0 or 1), shape (k,); NaN where undefined."""
    ranks = np.cumsum(column.counts) - (column.counts - 1) / 2
    return _correlation(column, column.values), _correlation(column, ranks)


def _correlation(column: Ranked, x: np.ndarray) -> np.ndarray:
    n, p = column.counts.sum(), column.share
    if not n:
        return np.full(len(p), np.nan)
    x = x - (column.counts * x).sum() / n
    spread = np.sqrt((column.counts * x**2).sum() / n * p * (1 - p))
    return (column.hits @ x) / n / np.where(spread > 0, spread, np.nan)


@dataclass(frozen=True)
class WithinStrata:
    """AUC of pairs of the same stratum; `weight` is about the rows of the smaller side among them."""

    auc: float
    error: float
    weight: float


def auc_within(
    column: Ranked, k: int, stratum: np.ndarray | None, unit: np.ndarray | None = None
) -> WithinStrata | None:
    """AUC of class k against the rest among rows of the same stratum; None when no pair can be compared.

    Strata are weighted as in the test of van Elteren (1960), by n1 n0 / (n1 + n0 + 1).

    Parameters
    ----------
    stratum : ndarray of int (below 65,536), shape (any,), optional
        Of all rows; None: all are one.
    unit : ndarray of int, shape (any,), optional
        Codes of the genes. With them the standard error is given, which takes whole genes as independent (structural
        components, summed by gene: Obuchowski 1997); without it is 0.
    """
    rows, code, positive = column.rows, column.code, column.one_hot[:, k]
    within = np.zeros(len(rows), dtype=np.int64)
    if stratum is not None:
        narrow = stratum[rows].astype(np.uint16)  # 16 bits are sorted by counting
        order = np.argsort(narrow, kind="stable")
        rows, code, positive, within = rows[order], code[order], positive[order], narrow[order].astype(np.int64)
    if not len(rows):
        return None
    new = np.concatenate([[True], (code[1:] != code[:-1]) | (within[1:] != within[:-1])])
    starts = np.flatnonzero(new)
    place = within[starts]
    n1 = np.add.reduceat(positive, starts).astype(np.float64)
    n0 = np.diff(starts, append=len(rows)) - n1
    all1, all0 = np.bincount(place, n1), np.bincount(place, n0)
    scale = 1 / (all1 + all0 + 1)
    weight = float((all1 * all0 * scale).sum())
    if weight == 0:
        return None
    # For each value: rows of the other side in its stratum that are below it, ties by half.
    below = np.cumsum(n0) - n0 - (np.cumsum(all0) - all0)[place] + n0 / 2
    wins = np.bincount(place, n1 * below)
    auc = float((wins * scale).sum()) / weight
    if unit is None:
        return WithinStrata(auc, 0.0, weight)
    above = all1[place] - (np.cumsum(n1) - n1 - (np.cumsum(all1) - all1)[place]) - n1 / 2
    mean = wins / np.maximum(all1 * all0, 1)
    of1 = (below - (mean * all0)[place]) * scale[place]
    of0 = (above - (mean * all1)[place]) * scale[place]
    value = np.cumsum(new) - 1
    sums = np.bincount(unit[rows], np.where(positive == 1, of1[value], of0[value]) / weight)
    units = max(2, len(np.unique(unit[rows])))
    return WithinStrata(auc, float(np.sqrt(units / (units - 1) * (sums**2).sum())), weight)
