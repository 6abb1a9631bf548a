"""Splitting groups of rows that must stay whole: one deterministic greedy for folds, holdout and instances.

scikit-learn's StratifiedGroupKFold wants row-level arrays and has open empty-fold bugs (FIELD_NOTES);
here the input is the small table of per-gene counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from metabatch.data.index import class_column


def seeded_rank(names: Sequence[str], seed: int) -> np.ndarray:
    """A random-looking rank per name, shape (n,), that depends on the seed and the name only."""
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    rank = np.empty(len(keys), dtype=np.int64)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return rank


def units_of(genes: pl.DataFrame, classes: int, *, by_split: bool) -> pl.DataFrame:
    """Genes gathered into the units that a split must not tear: unit, members, genes, rows, n_0..n_{K-1}.

    Parameters
    ----------
    genes : polars.DataFrame
        As in `metabatch.data.index.GeneIndex`.
    by_split : bool
        True: one unit per value of the split column; False: every gene is its own unit.
    """
    counts = [class_column(i) for i in range(classes)]
    unit = pl.col("split") if by_split else pl.col("gene_id")
    return (
        genes.group_by(unit.alias("unit"))
        .agg(pl.col("gene_id").sort().alias("members"), pl.len().alias("genes"), pl.col("rows", *counts).sum())
        .sort("unit")
    )


def sizes_of(units: pl.DataFrame, classes: int, *, class_weight: float = 1.0) -> np.ndarray:
    """The quantities to balance, shape (units, 2 + classes): genes, rows, rows per class.

    Each column is scaled to sum 1, classes by `class_weight` instead, so that all count alike.
    """
    names = ["genes", "rows", *(class_column(i) for i in range(classes))]
    sizes = units.select(names).to_numpy().astype(np.float64)
    totals = sizes.sum(axis=0)
    scaled = np.divide(sizes, totals, out=np.zeros_like(sizes), where=totals > 0)
    scaled[:, 2:] *= class_weight
    return scaled


def partition(
    sizes: np.ndarray, fractions: Sequence[float], rank: np.ndarray, *, capacity: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Put every unit into a bin so that each bin holds its fraction of every quantity.

    Largest first (by powers of two, so that the seed decides among equals); each unit goes where
    sum_d (load_d + size_d)^2 / fraction grows least: the greedy for convex load balancing.

    Parameters
    ----------
    sizes : ndarray of shape (units, d)
        Non-negative; columns scaled alike.
    fractions : sequence of float
        One per bin, adding up to 1.
    rank : ndarray of shape (units,)
        Seeded order among units of like size.
    capacity, counts : ndarray, optional
        At most `capacity[b]` of the summed `counts` may lie in bin b.

    Returns
    -------
    ndarray of shape (units,)
        Bin of each unit; -1 where no bin had room.
    """
    share = np.asarray(fractions, dtype=np.float64)
    load = np.zeros((len(share), sizes.shape[1]))
    used = np.zeros(len(share))
    bins = np.full(len(sizes), -1, dtype=np.int64)
    weight = sizes.max(axis=1, initial=0.0)
    bucket = np.floor(np.log2(np.maximum(weight, 1e-300)))
    for unit in np.lexsort((rank, -bucket)):
        size = sizes[unit]
        growth = (2 * load @ size + size @ size) / share
        if capacity is not None and counts is not None:
            growth = np.where(used + counts[unit] <= capacity, growth, np.inf)
        best = int(np.argmin(growth))
        if not np.isfinite(growth[best]):
            continue
        bins[unit] = best
        load[best] += size
        if counts is not None:
            used[best] += counts[unit]
    return bins
