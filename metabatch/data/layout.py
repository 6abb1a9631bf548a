"""How XGBoost stores a quantised matrix on the CPU, in bytes per cell.

Read off its memory use (``benchmarks/memory_law.py``, xgboost 3.4); a bin number takes one byte up to 256 bins
a feature, two beyond:

* no missing value anywhere: a bin number in the row index and one in the column index per cell, and slack;
* any missing value: four bytes per stored cell, and in the column index a bin number per row for columns that
  are at least 20 % stored, a bin number per stored cell for sparser ones;
* and once one column is sparser than that, eight bytes more per entry of the whole column index.
"""

from __future__ import annotations

from collections.abc import Sequence

DENSE_SLACK = 0.25
STORED_CELL = 4.0
ROW_NUMBER = 8.0
SPARSE_BELOW = 0.2
SLACK = 0.32


def cell_bytes(densities: Sequence[float], *, has_missing: bool, most_bins: int) -> float:
    """Mean bytes per cell.

    Parameters
    ----------
    densities : sequence of float
        Stored part of each feature's cells.
    has_missing : bool
        Whether any cell is missing.
    most_bins : int
        Bins of the feature that has most.
    """
    number = 1.0 if most_bins <= 256 else 2.0
    if not has_missing:
        return 2 * number + DENSE_SLACK
    entry = number + (ROW_NUMBER if min(densities) < SPARSE_BELOW else 0.0)
    costs = [STORED_CELL * d + entry * (d if d < SPARSE_BELOW else 1.0) for d in densities]
    return sum(costs) / len(costs) + SLACK


def bin_counts(distinct_at_most: Sequence[int | None], max_bin: int) -> list[int]:
    """Bins each feature can have: `max_bin`, or fewer for an integer of few values."""
    return [max_bin if d is None else min(max_bin, d) for d in distinct_at_most]
