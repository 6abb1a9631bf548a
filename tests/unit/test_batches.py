"""Which tables make a batch, none lost, none larger than asked for; and a table as a matrix."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from metabatch.data.batches import joined
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
