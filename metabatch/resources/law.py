"""The memory law of a data set: what an instance will need, from rows, features and the data's own density.

    peak = baseline + max(matrix + rows x c + max(batch, histograms), rows x s)

Building the matrix and growing trees do not overlap, so the larger of the two transients counts; calibration and
metrics (s) come when the matrix is gone. `plan` makes
the law (metabatch.planning.memory), stores it in plan.json, and predicts by it; `train-instance` holds its rungs
against it.
"""

from __future__ import annotations

import math

import msgspec

# Row groups up to this size are read whole: Arrow then needs a third of the memory of its batch reader.
WHOLE_GROUP_ROWS = 32_768


class MemoryLaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bytes for one data set and one set of options.

    Attributes
    ----------
    cell_bytes : float
        Matrix, per row and feature.
    row_bytes, scoring_row_bytes : float
        What else grows with the rows: labels, gradients, scores beside the matrix; calibration and metrics after it.
    fixed_bytes, fixed_anonymous_bytes : int
        Interpreter and libraries; the latter without the mapped library files.
    group_bytes, group_rows : int
        The largest row group: compressed bytes of its features, and its rows.
    batch_row_bytes : float
        A row while it is read: decoded, and as handed to XGBoost.
    node_bytes : int
        Histogram of one tree node.
    per_gene_bytes : float or None
        The user's own figure (--memory-per-gene-mb), which then stands for instances in memory.
    """

    cell_bytes: float
    row_bytes: float
    scoring_row_bytes: float
    fixed_bytes: int
    fixed_anonymous_bytes: int
    group_bytes: int
    group_rows: int
    batch_row_bytes: float
    node_bytes: int
    max_depth: int
    features: int
    stored_fraction: float
    per_gene_bytes: float | None = None

    def in_memory(self, rows: int, genes: int) -> int:
        """Predicted peak of an instance that holds its matrix in memory, bytes."""
        if self.per_gene_bytes is not None:
            return round(genes * self.per_gene_bytes)
        return round(self.fixed_bytes + self._growth(rows, WHOLE_GROUP_ROWS, self.matrix_bytes(rows)))

    def external(self, rows: int, batch_rows: int = WHOLE_GROUP_ROWS, parts: int = 1) -> int:
        """Predicted peak of anonymous memory with the matrix in pages on disk, bytes.

        With `parts` the rows are trained on in so many parts, but scored together.
        """
        part = math.ceil(rows / parts)
        pages = 2 * self.matrix_bytes(min(part, batch_rows, self.group_rows))
        growth = max(self._growth(part, batch_rows, pages), rows * self.scoring_row_bytes)
        return round(self.fixed_anonymous_bytes + growth)

    def matrix_bytes(self, rows: int) -> float:
        """The quantised matrix, bytes."""
        return rows * self.features * self.cell_bytes

    def page_bytes(self, rows: int) -> int:
        """Size of the page files on disk, bytes: also the page cache that external memory needs for full speed."""
        return round(self.matrix_bytes(rows) * 1.05) + (1 << 20)

    def rows_that_fit(self, budget: int) -> int:
        """The most rows an in-memory instance may have within `budget` bytes; 0 when none."""
        low, high = 0, budget
        while low < high:
            middle = (low + high + 1) // 2
            if self.fixed_bytes + self._growth(middle, WHOLE_GROUP_ROWS, self.matrix_bytes(middle)) <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def scaled(self, factor: float) -> MemoryLaw:
        """The law with everything that depends on the data larger by `factor`."""
        changed = {
            name: type(getattr(self, name))(getattr(self, name) * factor)
            for name in ("cell_bytes", "row_bytes", "scoring_row_bytes", "group_bytes", "batch_row_bytes", "node_bytes")
        }
        return msgspec.structs.replace(self, **changed)

    def _growth(self, rows: int, batch_rows: int, matrix: float) -> float:
        # A tree of depth d has at most 2^d leaves, and no more nodes than a few rows each allow.
        nodes = min(2**self.max_depth, max(1, rows // 16))
        batch = self.group_bytes + min(batch_rows, self.group_rows, rows) * self.batch_row_bytes
        training = matrix + rows * self.row_bytes + max(batch, nodes * self.node_bytes)
        return max(training, rows * self.scoring_row_bytes)
