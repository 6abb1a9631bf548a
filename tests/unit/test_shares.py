"""Which genes each worker of a distributed model holds."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabatch.data.shares import share_spread, shares_of


def tables(rows: list[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Genes of these many rows, in the files in the opposite order of their names."""
    names = [f"G{i:04d}" for i in reversed(range(len(rows)))]
    genes = pl.DataFrame({"gene_id": names, "rows": rows})
    segments = pl.DataFrame({"gene_id": names, "shard": 0, "row_group": range(len(rows)), "rows": rows})
    return genes, segments


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=60), st.data())
def test_every_gene_is_in_one_share_and_shares_are_equal_but_for_the_largest_gene(
    rows: list[int], data: st.DataObject
) -> None:
    workers = data.draw(st.integers(1, len(rows)))
    genes, segments = tables(rows)
    shares = shares_of(genes.sample(fraction=1, shuffle=True, seed=1), segments, workers)
    assert sorted(g for share in shares for g in share) == sorted(genes["gene_id"])
    assert all(shares)
    assert all(share == sorted(share) for share in shares)
    of = dict(genes.iter_rows())
    order = list(genes["gene_id"])
    cut = [order.index(max(share, key=order.index)) for share in shares]
    assert cut == sorted(cut)  # each a run of the files' order
    if len(rows) > 3 * workers and max(rows) < sum(rows) / workers / 3:
        for share in shares:
            assert abs(sum(of[g] for g in share) - sum(rows) / workers) <= max(rows)


def test_one_gene_larger_than_a_share_leaves_the_others_to_the_other_workers() -> None:
    assert share_spread(*tables([1, 1, 10_000, 1]), 4) == pytest.approx(4 * 10_000 / 10_003)
    assert share_spread(*tables([5, 5, 5, 5]), 2) == 1
    assert shares_of(*tables([1, 1, 10_000, 1]), 4) == [["G0003"], ["G0002"], ["G0001"], ["G0000"]]


def test_more_workers_than_genes_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 genes for 3 workers"):
        shares_of(*tables([5, 5]), 3)
