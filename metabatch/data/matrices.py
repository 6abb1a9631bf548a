"""Preprocessed rows as XGBoost and the linear models take them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csc_matrix, csr_matrix

from metabatch.data.batches import as_float32, as_numpy, one_chunk

# Columns written side by side: so many float32 are one line of a CPU's cache, which is then written once.
_TOGETHER = 16


def as_rows(table: pa.Table) -> np.ndarray | csr_matrix:
    """`as_matrix`, or where three quarters of the cells are missing or more, the others only, as scipy's CSR matrix.

    XGBoost copies every number of a row once for every booster, and gives the same bits for both. Rows can be chosen
    of both in the same way. By columns and by rows, the numbers then take no more memory than the whole matrix.
    """
    cells = table.num_rows * table.num_columns
    most = cells - sum(column.null_count for column in table.columns)
    if 4 * most > cells:
        return as_matrix(table)
    values, rows = np.empty(most, np.float32), np.empty(most, np.int32)
    ends = np.zeros(table.num_columns + 1, np.int64)
    for i, column in enumerate(table.columns):
        numbers = _numbers(column)
        there = np.flatnonzero(~np.isnan(numbers))
        own = slice(ends[i], ends[i] + len(there))
        values[own], rows[own] = numbers[there], there
        ends[i + 1] = own.stop
    return csc_matrix((values[: ends[-1]], rows[: ends[-1]], ends), shape=table.shape).tocsr()


def as_matrix(table: pa.Table) -> np.ndarray:
    """A preprocessed table row by row, float32, shape (n, features); NaN where missing.

    XGBoost takes it as it is, where it would go through all columns of an Arrow table at every prediction, which takes
    as long as predicting.
    """
    found = np.empty((table.num_rows, table.num_columns), dtype=np.float32)
    columns = table.columns
    for start in range(0, len(columns), _TOGETHER):
        part = columns[start : start + _TOGETHER]
        side_by_side = np.empty((len(part), table.num_rows), dtype=np.float32)
        for own, column in zip(side_by_side, part, strict=True):
            own[:] = _numbers(column)
        found[:, start : start + len(part)] = side_by_side.T
    return found


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return _with_gaps(one_chunk(column)) if column.null_count else as_numpy(column)


def _with_gaps(array: pa.Array) -> np.ndarray:
    """Numbers as float32, NaN where missing."""
    if not pa.types.is_integer(array.type) and not pa.types.is_floating(array.type):
        return as_numpy(pc.fill_null(as_float32(pa.chunked_array([array])), float("nan")))
    end = array.offset + len(array)
    mask, values = array.buffers()
    there = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little", count=end)[array.offset :].view(bool)
    numbers = np.frombuffer(values, array.type.to_pandas_dtype(), count=end)[array.offset :]
    return np.where(there, numbers.astype(np.float32), np.float32("nan"))
