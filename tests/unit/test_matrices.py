"""Rows as the models take them: every number in its place, and the same bits whether gaps are left out or not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from metabatch.data.matrices import as_matrix, as_rows


def whole(rows: np.ndarray | csr_matrix) -> np.ndarray:
    """What `as_rows` made, as a matrix with NaN in the gaps."""
    if isinstance(rows, np.ndarray):
        return rows
    found = np.full(rows.shape, np.nan, dtype=rows.dtype)
    there = rows.tocoo()
    found[there.row, there.col] = there.data
    return found


@given(
    columns=st.integers(1, 40), rows=st.integers(1, 70), begin=st.integers(0, 69), seed=st.integers(0, 99),
    gaps=st.sampled_from([0.0, 0.4, 0.9, 1.0]), full=st.sampled_from([3, 1_000]),
)  # fmt: skip
def test_a_matrix_has_every_cell_of_its_table_in_its_place(
    columns: int, rows: int, begin: int, seed: int, gaps: float, full: int
) -> None:
    """Slices, too, whose validity bits begin in the middle of a byte."""
    rng = np.random.default_rng(seed)
    types = (pa.uint8(), pa.float32(), pa.int16(), pa.int64(), pa.float64(), pa.bool_())
    arrays, expected = [], []
    for number in range(columns):
        kind = types[number % len(types)]
        values = rng.integers(0, 2 if kind == pa.bool_() else 200, rows)
        missing = rng.random(rows) < gaps * (number % full > 0 or full > columns)
        typed = values.astype(bool) if kind == pa.bool_() else values
        arrays.append(pa.array(typed, mask=missing).cast(kind))
        expected.append(np.where(missing, np.nan, values))
    table = pa.Table.from_arrays(arrays, names=[str(n) for n in range(columns)]).slice(begin)
    found = as_matrix(table)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(expected, dtype=np.float32).T[begin:], equal_nan=True)
    rows_found = as_rows(table)
    assert isinstance(rows_found, csr_matrix) == (4 * np.isfinite(found).sum() <= found.size)
    assert np.array_equal(whole(rows_found), found, equal_nan=True)


@pytest.mark.parametrize("gaps", [0.1, 0.74, 0.76, 0.97, 1.0])
def test_trees_say_the_same_bits_of_rows_without_their_gaps(gaps: float) -> None:
    rng = np.random.default_rng(int(100 * gaps))
    counts = rng.integers(0, 5, (600, 40)).astype(np.uint8)  # zeros that are there stay
    scores = np.where(rng.random((600, 3)) < 0.2, np.nan, rng.random((600, 3))).astype(np.float32)
    missing = rng.random(counts.shape) < gaps
    arrays = [pa.array(c, mask=m) for c, m in zip(counts.T, missing.T, strict=True)]
    table = pa.table([*arrays, *(pa.array(s) for s in scores.T)], names=[str(n) for n in range(43)])
    matrix, rows = as_matrix(table), as_rows(table)
    assert isinstance(rows, csr_matrix) == (gaps > 0.8)  # the scores' gaps are NaN, which are not counted before
    label = (np.nan_to_num(scores[:, 0]) + counts[:, 0] * ~missing[:, 0] / 5 > 0.6).astype(int)
    booster = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(matrix, label), 20)
    found = booster.inplace_predict(rows)
    assert np.array_equal(found, booster.inplace_predict(matrix))
    assert len(np.unique(found)) > 3
    some = rng.random(600) < 0.3
    assert np.array_equal(booster.inplace_predict(rows[some]), found[some])
