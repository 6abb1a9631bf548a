"""Counts of k-mers in a window around positions. Counts are whole numbers: no order of work can change them."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# 4,096 columns. Longer ones hardly occur in a window, and every row would carry a column for each of them.
MOST_K = 6
# Windows looked at in one go: their counters stay in a core's cache.
_ROWS = 64
# What N stands for in a k-mer's number: below -(4**k - 1) for every k, so that one N makes the whole number negative.
_NUMBER = np.array([0, 1, 2, 3, -(4**MOST_K)], np.int32)


@cache
def kmer_names(k: int) -> tuple[str, ...]:
    """Column names in the order of the counts, e.g. ``3mer_AAA`` to ``3mer_TTT``."""
    return tuple(f"{k}mer_{''.join(letters)}" for letters in product("ACGT", repeat=k))


def kmer_counts(codes: np.ndarray, starts: np.ndarray, window: int, sizes: Collection[int]) -> dict[int, np.ndarray]:
    """Overlapping k-mers that lie wholly inside of each window; those holding an N are not counted.

    Parameters
    ----------
    codes : uint8, shape (m,)
        Nucleotides: A 0, C 1, G 2, T 3, N 4.
    starts : int64, shape (n,)
        Where the windows start.
    window : int
        nt of a window, at least the largest of `sizes`.

    Returns
    -------
    dict
        k -> counts, shape (4**k, n), rows as `kmer_names`: uint8 where no count can exceed 255, else uint16.
    """
    longest, windows = max(sizes), sliding_window_view(codes, window)
    # The first row takes the k-mers that are not counted.
    counts = {
        k: np.zeros((4**k + 1, len(starts)), np.uint8 if window - k + 1 <= np.iinfo(np.uint8).max else np.uint16)
        for k in sizes
    }
    for first in range(0, len(starts), _ROWS):
        letters = _NUMBER.take(windows[starts[first : first + _ROWS]])
        place = np.arange(first, first + len(letters))[:, None] + len(starts)
        number = letters
        for k in range(1, longest + 1):
            if k > 1:
                number = number[:, :-1] * np.int32(4) + letters[:, k - 1 :]
            if k in counts:
                cell = np.maximum(number, -1).astype(np.intp)  # 32 bits do not number all cells
                cell *= len(starts)
                cell += place
                np.add.at(counts[k].reshape(-1), cell.reshape(-1), counts[k].dtype.type(1))
    return {k: table[1:] for k, table in counts.items()}
