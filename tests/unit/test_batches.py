"""Which tables make a batch, none lost, none larger than asked for; and a table as a matrix."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from metabatch.data.batches import as_matrix, joined
from metabatch.resources.law import JOINED_ROWS, WHOLE_GROUP_ROWS


@given(st.lists(st.integers(1, WHOLE_GROUP_ROWS), max_size=300), st.sampled_from([4_096, WHOLE_GROUP_ROWS]))
def test_small_tables_are_joined_in_order_to_batches_of_a_bounded_size(sizes: list[int], most: int) -> None:
    sizes = [min(size, most) for size in sizes]  # as the reader cuts them
    batches = joined(sizes, most)
    assert [size for batch in batches for size in batch] == sizes
    limit = min(JOINED_ROWS, most)
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert sum(batch) + following[0] > limit


@given(
    columns=st.integers(1, 40), rows=st.integers(1, 70), begin=st.integers(0, 69), seed=st.integers(0, 99),
    gaps=st.sampled_from([0.0, 0.4, 1.0]),
)  # fmt: skip
def test_a_matrix_has_every_cell_of_its_table_in_its_place(
    columns: int, rows: int, begin: int, seed: int, gaps: float
) -> None:
    """Slices, too, whose validity bits begin in the middle of a byte."""
    rng = np.random.default_rng(seed)
    types = (pa.uint8(), pa.float32(), pa.int16(), pa.int64(), pa.float64(), pa.bool_())
    arrays, expected = [], []
    for number in range(columns):
        kind = types[number % len(types)]
        values = rng.integers(0, 2 if kind == pa.bool_() else 200, rows)
        missing = rng.random(rows) < gaps * (number % 3 > 0)
        typed = values.astype(bool) if kind == pa.bool_() else values
        arrays.append(pa.array(typed, mask=missing).cast(kind))
        expected.append(np.where(missing, np.nan, values))
    table = pa.Table.from_arrays(arrays, names=[str(n) for n in range(columns)]).slice(begin)
    found = as_matrix(table)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(expected, dtype=np.float32).T[begin:], equal_nan=True)
