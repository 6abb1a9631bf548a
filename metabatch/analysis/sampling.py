"""Rows drawn for the analyses that cannot look at all of them, and what each drawn row stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class MatrixRows:
    """Some rows as the boosters see them.

    table : pyarrow.Table of shape (n, features), preprocessed, in matrix order (types of the features: compact).
    label : unsigned integers, shape (n,): positions in the classes.
    weight : float64, shape (n,): sampling weight x rows that the drawn row stands for (see `draw_rows`).
    unit : int, shape (n,): code of the gene, or of the split group where there is one: what is permuted and resampled.
    """

    table: pa.Table
    label: np.ndarray
    weight: np.ndarray
    unit: np.ndarray

    def __len__(self) -> int:
        return self.table.num_rows


def draw_rows(label: np.ndarray, most: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows without replacement, every class alike as far as it has rows.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
    most : int
        Rows to draw at most; all when there are no more.

    Returns
    -------
    rows : ndarray of int64, shape (m,), ascending
    times : ndarray of float64, shape (m,)
        Rows of its class over rows drawn of its class: with these weights the sample stands for all rows.

    Raises
    ------
    ValueError
        `most` is below the number of classes: a class without a drawn row could not be stood for.
    """
    if most < classes:
        raise ValueError(f"{most} row(s) cannot stand for {classes} classes")
    counts = np.bincount(label, minlength=classes)
    quota = quotas(counts, most)
    rng = np.random.default_rng(seed)
    drawn = []
    for code in range(classes):
        here = np.flatnonzero(label == code)
        drawn.append(here if quota[code] == len(here) else rng.choice(here, quota[code], replace=False))
    rows = np.sort(np.concatenate(drawn))
    times = counts / np.maximum(quota, 1)
    return rows, times[label[rows]]


def quotas(counts: np.ndarray, most: int) -> np.ndarray:
    """Rows of each class: equal shares of `most`; what a small class leaves over goes to the others."""
    quota = np.zeros(len(counts), dtype=np.int64)
    left = min(most, int(counts.sum()))
    order = np.argsort(counts, kind="stable")
    for done, code in enumerate(order):
        quota[code] = min(int(counts[code]), left // (len(counts) - done))
        left -= int(quota[code])
    return quota


def evenly(first: int, count: int, most: int, total: int) -> np.ndarray:
    """Which of `count` rows to keep so that of all `total` there are `most`, evenly spread; bool, shape (count,).

    first : how many of the total came before these.
    """
    place = first + np.arange(count)
    return (place + 1) * most // total > place * most // total


def draw_units(sizes: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Whole units (genes, split groups) in random order as long as they have at most `most` rows together.

    bool, shape (units,). All of them when they have no more rows than that. A unit that alone has more comes last: it
    is taken only where every unit is as large, for at least one is.
    """
    if sizes.sum() <= most:
        return np.ones(len(sizes), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(sizes[order] > most, kind="stable")]
    total = np.cumsum(sizes[order])
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[: max(1, int(np.searchsorted(total, most, side="right")))]] = True
    return chosen
