"""The memory law of a data set: what an instance will need, from rows, features and the data's own density.

    in memory: peak = baseline + max(matrix + max(rows x b + batch, rows x c + histograms), rows x s)
    external:  peak = baseline + max(pages + rows x b + batch, rows x c + histograms + blocks, rows x s)
    linear:    peak = baseline + max(batch of rows x 4 B a feature + rows x c + batch read, rows x s)
    analyses:  peak = baseline + rows x a + scored rows (a bounded number) + batch + what the widest of them holds

Building the matrix (b, a batch) and growing trees (c, histograms) do not overlap, so the larger counts; calibration
and metrics (s) come when the matrix is gone. The pages of external memory are anonymous memory only until they are
written; but XGBoost sorts the rows of each page into nodes by blocks of its own, one a node and 2,048 rows
(src/tree/hist, PartitionBuilder), and keeps them: many small pages take more than few large ones. `plan` makes the
law (metabatch.planning.memory), stores it in plan.json, and predicts by it; `train-instance` holds its rungs
against it.
"""

from __future__ import annotations

import math

import msgspec

# Row groups up to this size are decoded whole, which takes less memory than Arrow's batch reader; larger ones
# piece by piece. A small batch has as many rows as such a piece; others join several, because every page of external
# memory costs some milliseconds a tree and level.
WHOLE_GROUP_ROWS, PIECE_ROWS, JOINED_ROWS = 32_768, 4_096, 16_384
# Rows of which linear models learn at a time: standardised, they are float64.
LINEAR_ROWS = 2_048
# Of the 32 KiB of a block so much is touched: fitted to what 9,280 genes took (benchmarks/RESULTS.md, growth), at depth
# 6 and 16,384 rows a page. In memory, a single page, blocks take 16 bytes a row, which row_bytes has.
BLOCK_ROWS, BLOCK_BYTES, BLOCK_ROW_BYTES = 2_048, 18 << 10, 16
# What a worker holds of a row of others: label, gene, fold, weight, a mask or two, and the scores of every class.
OTHER_ROW_BYTES = 24
# In a worker's job beside its own memory: the Dask worker that starts it; beside the first one the scheduler and the
# process that leads.
BESIDE_BYTES = 512 << 20
# Most scored rows that the analyses hold; of more, whole genes are drawn.
ANALYSED_ROWS = 300_000


class MemoryLaw(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bytes for one data set and one set of options.

    Attributes
    ----------
    cell_bytes : float
        Matrix, per row and feature.
    building_row_bytes, row_bytes, scoring_row_bytes : float
        What else grows with the rows: labels and genes while the matrix is built; those, gradients and scores while
        trees grow; calibration and metrics after it.
    fixed_bytes, fixed_anonymous_bytes : int
        Interpreter and libraries; the latter without the mapped library files.
    group_bytes, group_rows, small_group_rows : int
        Reading: what is held beside the decoded rows of the largest row group, and the rows of the largest batch;
        with small batches those decoded at once, which are fewer of a group that is read piece by piece.
    page_rows : int
        Rows of a batch on average: a page of external memory.
    row_width : float
        A row in the types of the features.
    node_bytes : int
        Histogram of one tree node.
    features, linear_width : int
        Columns of the matrix; of linear models, with their k-mers hashed.
    analysis_row_bytes, scored_row_bytes, analysis_bytes, analysis_file_bytes : float, float, int, int
        Analyses, after everything else: what is held for every row, for each scored row looked at, and besides
        (libraries, drawn rows, contributions), and the libraries' mapped files; all 0 without analyses.
    share_spread : float
        Rows of the largest share of a distributed model's workers, by those of an equal share.
    per_gene_bytes : float or None
        The user's own figure (--memory-per-gene-mb), which then stands for instances in memory.
    """

    cell_bytes: float
    building_row_bytes: float
    row_bytes: float
    scoring_row_bytes: float
    fixed_bytes: int
    fixed_anonymous_bytes: int
    group_bytes: int
    group_rows: int
    small_group_rows: int
    page_rows: int
    row_width: float
    node_bytes: int
    max_depth: int
    features: int
    linear_width: int
    stored_fraction: float
    analysis_row_bytes: float = 0.0
    scored_row_bytes: float = 0.0
    analysis_bytes: int = 0
    analysis_file_bytes: int = 0
    per_gene_bytes: float | None = None
    share_spread: float = 1.0

    def in_memory(self, rows: int, genes: int) -> int:
        """Predicted peak of an instance that holds its matrix in memory, bytes."""
        if self.per_gene_bytes is not None:
            return round(genes * self.per_gene_bytes)
        return round(self.fixed_bytes + self._in_memory_growth(rows))

    def external(self, rows: int, batch_rows: int = WHOLE_GROUP_ROWS, parts: int = 1) -> int:
        """Predicted peak of anonymous memory with the matrix in pages on disk, bytes.

        With `parts` the rows are trained on in so many parts, but scored together.
        """
        part = math.ceil(rows / parts)
        pages = 2 * self.matrix_bytes(min(part, batch_rows, self._held_rows(batch_rows)))  # written, and the next one
        # Parts that are through keep their labels and scores: about a third of what scoring takes.
        held = (rows - part) * self.scoring_row_bytes / 3
        blocks = self._block_bytes(part, min(batch_rows, self.page_rows))
        growth = max(
            held + self._growth(part, batch_rows, 0, pages, blocks),
            rows * self.scoring_row_bytes,
            self._analysis(rows, batch_rows),
        )
        return round(self.fixed_anonymous_bytes + growth)

    def incremental(self, rows: int, batch_rows: int) -> int:
        """Predicted peak of linear models that learn from `batch_rows` rows at a time, bytes."""
        held = min(rows, batch_rows) * self.incremental_row_bytes
        # Two matrices on their way to the batch; of the rows of a step: as drawn, as taken, standardised and a copy.
        steps = LINEAR_ROWS * (self.features * 2 * 4 + self.linear_width * (4 + 4 + 8 + 8))
        if self.linear_width < self.features:  # hashed: what comes of a matrix, and a copy of what is hashed
            steps += LINEAR_ROWS * 4 * (2 * self.linear_width + self.features)
        learning = rows * self.row_bytes + held + self._batch(rows, WHOLE_GROUP_ROWS) + steps
        growth = max(
            learning, rows * self.scoring_row_bytes, self._analysis(rows, WHOLE_GROUP_ROWS) + self.analysis_file_bytes
        )
        return round(self.fixed_bytes + growth)

    def distributed(
        self, rows: int, workers: int, batch_rows: int = WHOLE_GROUP_ROWS, *, external: bool = False
    ) -> int:
        """Predicted peak of the worker that leads: its share as alone, label, weight, fold and scores of all rows.

        Of external memory the anonymous part, as alone.
        """
        own = math.ceil(rows / workers * self.share_spread)
        alone = self.external(own, batch_rows) if external else round(self.fixed_bytes + self._in_memory_growth(own))
        fixed = self.fixed_anonymous_bytes if external else self.fixed_bytes
        analysis = self._analysis(rows, batch_rows) + (0 if external else self.analysis_file_bytes)
        finishing = max(rows * self.scoring_row_bytes, analysis)
        return round(max(alone + max(0, rows - own) * OTHER_ROW_BYTES, fixed + finishing))

    @property
    def incremental_row_bytes(self) -> int:
        """A row of a batch of linear models."""
        return 4 * self.linear_width

    def matrix_bytes(self, rows: int) -> float:
        """The quantised matrix, bytes."""
        return rows * self.features * self.cell_bytes

    def page_bytes(self, rows: int) -> int:
        """Size of the page files on disk, bytes: also the page cache that external memory needs for full speed."""
        return round(self.matrix_bytes(rows) * 1.05) + (1 << 20)

    def batch_rows(self, rows: int, budget: int) -> int:
        """Rows of a batch with which external memory fits `budget`, if any does: row groups whole, or small ones."""
        small_is_less = self.external(rows, PIECE_ROWS) < self.external(rows)
        return PIECE_ROWS if self.external(rows) > budget and small_is_less else WHOLE_GROUP_ROWS

    def rows_that_fit(self, budget: int) -> int:
        """The most rows an in-memory instance may have within `budget` bytes; 0 when none."""
        low, high = 0, budget
        while low < high:
            middle = (low + high + 1) // 2
            if self.fixed_bytes + self._in_memory_growth(middle) <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def scaled(self, factor: float) -> MemoryLaw:
        """The law with everything that depends on the data larger by `factor`."""
        changed = {
            name: type(getattr(self, name))(getattr(self, name) * factor)
            for name in (
                "cell_bytes",
                "building_row_bytes",
                "row_bytes",
                "scoring_row_bytes",
                "group_bytes",
                "row_width",
                "node_bytes",
            )
        }
        return msgspec.structs.replace(self, **changed)

    def _held_rows(self, batch_rows: int) -> int:
        """Rows of the largest row group that are decoded at once."""
        return self.group_rows if batch_rows >= WHOLE_GROUP_ROWS else self.small_group_rows

    def _in_memory_growth(self, rows: int) -> float:
        trained = self._growth(rows, WHOLE_GROUP_ROWS, self.matrix_bytes(rows), 0)
        return max(trained, self._analysis(rows, WHOLE_GROUP_ROWS) + self.analysis_file_bytes)

    def _batch(self, rows: int, batch_rows: int) -> float:
        """Reading: a batch as decoded, and as handed on."""
        decoded = min(self._held_rows(batch_rows), rows)
        return self.group_bytes + (decoded + min(batch_rows, decoded)) * self.row_width

    def _analysis(self, rows: int, batch_rows: int) -> float:
        """Analyses; the matrix is gone by then."""
        if not self.analysis_bytes:
            return 0.0
        scored = min(rows, ANALYSED_ROWS) * self.scored_row_bytes
        return rows * self.analysis_row_bytes + max(scored, self._batch(rows, batch_rows)) + self.analysis_bytes

    def _block_bytes(self, rows: int, page_rows: int) -> float:
        """What the blocks of many pages take more than those of one."""
        nodes = min(2 ** (self.max_depth - 1), max(1, page_rows // 16))
        blocks = rows / page_rows * (nodes + page_rows / BLOCK_ROWS)
        return max(0.0, blocks * BLOCK_BYTES - rows * BLOCK_ROW_BYTES)

    def _growth(self, rows: int, batch_rows: int, matrix: float, pages: float, blocks: float = 0.0) -> float:
        """`matrix`: held throughout; `pages`: held while they are built; `blocks`: while trees grow."""
        # A tree of depth d has at most 2^d leaves, and no more nodes than a few rows each allow.
        nodes = min(2**self.max_depth, max(1, rows // 16))
        batch = self._batch(rows, batch_rows)
        building = pages + rows * self.building_row_bytes + batch
        training = rows * self.row_bytes + nodes * self.node_bytes + blocks
        return max(matrix + max(building, training), rows * self.scoring_row_bytes)
