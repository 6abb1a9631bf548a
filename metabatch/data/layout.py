"""How XGBoost stores a quantised matrix on the CPU, in bytes per cell.

Read off its memory use (``benchmarks/memory_law.py``, xgboost 3.4, max_bin 256):

* no missing value anywhere: a byte of bin index and a byte of column index per cell, 2.25 B with slack;
* any missing value: four bytes per stored cell, and a column index of one byte per row for columns that are
  at least 20 % stored, of one byte per stored cell for sparser ones;
* and once one column is sparser than that, eight bytes more per entry of the whole column index.
"""

from __future__ import annotations

from collections.abc import Sequence

DENSE_CELL = 2.25
STORED_CELL = 4.0
ROW_NUMBER = 8.0
SPARSE_BELOW = 0.2
SLACK = 0.32


def cell_bytes(densities: Sequence[float], *, has_missing: bool) -> float:
    """Mean bytes per cell.

    Parameters
    ----------
    densities : sequence of float
        Stored part of each feature's cells.
    has_missing : bool
        Whether any cell is missing.
    """
    if not has_missing:
        return DENSE_CELL
    entry = 1.0 + (ROW_NUMBER if min(densities) < SPARSE_BELOW else 0.0)
    costs = [STORED_CELL * d + entry * (d if d < SPARSE_BELOW else 1.0) for d in densities]
    return sum(costs) / len(costs) + SLACK
