"""The rows of an instance a batch at a time, its row groups in any order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from metabatch.data.batches import Piece, Reader, RowCount, ahead
from metabatch.data.hashing import Hasher
from metabatch.data.matrices import as_matrix
from metabatch.data.preprocess import Preprocessor
from metabatch.resources.law import LINEAR_ROWS


class ShuffledRows:
    """Reads the features of `pieces`.

    Parameters
    ----------
    group_column, where : str
        Of the data set; named in errors.
    on_rows : callable
        Told the rows of every matrix made; raises to stop.
    hasher : Hasher, optional
        Makes the matrices narrower.
    """

    def __init__(
        self, pieces: Sequence[Piece], prepare: Preprocessor, group_column: str, where: str, count: RowCount,
        on_rows: Callable[[int], None], hasher: Hasher | None = None,
    ) -> None:  # fmt: skip
        self._pieces, self._prepare, self._group_column, self._where = list(pieces), prepare, group_column, where
        self._count, self._on_rows = count, on_rows
        self._hasher, self._names = hasher, [f.name for f in prepare.features]
        self.features = self._names if hasher is None else hasher.features

    def __len__(self) -> int:
        return len(self._pieces)

    def tables(self, order: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Matrices of at most `LINEAR_ROWS` rows, float32, NaN where missing, with the position of their piece.

        The next one is made in a thread while the last one is used.
        """
        return ahead(self._matrices(order))

    def _matrices(self, order: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        for number in order:
            for table in Reader([self._pieces[number]], self._names, self._group_column, count=self._count):
                batch = self._prepare.transform(table, where=self._where)
                for start in range(0, batch.num_rows, LINEAR_ROWS):
                    rows = as_matrix(batch.slice(start, LINEAR_ROWS))
                    yield number, rows if self._hasher is None else self._hasher.hashed(rows)
                    self._on_rows(min(LINEAR_ROWS, batch.num_rows - start))
                del table, batch  # before the next one is decoded

    def batches(
        self, order: np.ndarray, sizes: np.ndarray, size: int, skipped: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of `size` rows (the last one fewer) and the rows' positions in the order of `pieces`.

        The arrays are used again for the next batch.

        Parameters
        ----------
        order : ndarray of int
            In which the pieces come.
        sizes : ndarray of int
            Rows of each piece.
        skipped : int
            Batches that are left out; row groups that are in no other are not read.
        """
        starts = np.concatenate([[0], np.cumsum(sizes)])
        ends = np.cumsum(sizes[order])
        first = int(np.searchsorted(ends, skipped * size, side="right"))
        drop = skipped * size - (int(ends[first - 1]) if first else 0)
        batch = np.empty((size, len(self.features)), dtype=np.float32)
        index, filled = np.empty(size, dtype=np.int64), 0
        tables = self.tables([int(p) for p in order[first:]])
        for number, group in itertools.groupby(tables, lambda item: item[0]):
            at = int(starts[number])
            for _, table in group:
                position = np.arange(at, at + len(table))
                at += len(table)
                gone = min(drop, len(table))
                drop -= gone
                begin = gone
                while begin < len(table):
                    taken = min(size - filled, len(table) - begin)
                    batch[filled : filled + taken] = table[begin : begin + taken]
                    index[filled : filled + taken] = position[begin : begin + taken]
                    filled, begin = filled + taken, begin + taken
                    if filled == size:
                        yield batch, index
                        filled = 0
        if filled:
            yield batch[:filled], index[:filled]
