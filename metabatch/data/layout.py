"""How XGBoost stores a quantised matrix on the CPU, in bytes per cell.

Read off its sources (gradient_index, column_matrix) and confirmed by measuring (tests/unit/test_layout.py). A bin
number takes one byte up to 256 bins a feature, two beyond:

* no missing value anywhere: a bin number in the row index and one in the column index per cell, and a bit;
* any missing value: four bytes per stored cell in the row index; and in the column index, for every row of the
  columns that are at least 20 % stored and every stored cell of sparser ones, a bin number and a bit;
* and once one column is sparser than that, eight bytes more per entry of the whole column index.
"""

from __future__ import annotations

from collections.abc import Sequence

STORED_CELL = 4.0
ROW_NUMBER = 8.0
SPARSE_BELOW = 0.2
BIT = 0.125


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
        return 2 * number + BIT
    entry = number + BIT + (ROW_NUMBER if min(densities) < SPARSE_BELOW else 0.0)
    costs = [STORED_CELL * d + entry * (d if d < SPARSE_BELOW else 1.0) for d in densities]
    return sum(costs) / len(costs)
