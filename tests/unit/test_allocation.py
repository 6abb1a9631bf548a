"""How many instances, and which genes in which: golden cases and properties of any table and budget."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.errors import BudgetError
from metabatch.options import Options
from metabatch.planning.allocation import allocate, instance_count, smallest_covering_size
from metabatch.planning.duration import Speed
from metabatch.planning.strategies import choose
from metabatch.resources.law import MemoryLaw
from metabatch.rundir.manifests import Budget, Columns

SPEED = Speed(build_per_row=1e-5, tree_per_row=1e-6)
COLUMNS = Columns(
    group="gene_id", label="splice_type", classes=("neither", "site"), scores={}, split=None, weight=None, ids=(),
    row_key=(), chrom=None, carried={},
)  # fmt: skip


def gene_table(rows: list[int]) -> pl.DataFrame:
    names = [f"G{i:05d}" for i in range(len(rows))]
    sites = [max(1, r // 10) for r in rows]
    return pl.DataFrame(
        {
            "gene_id": names,
            "rows": rows,
            "n_0": [r - s for r, s in zip(rows, sites, strict=True)],
            "n_1": sites,
            "weight": [float(r) for r in rows],
            "split": [""] * len(rows),
        }
    ).cast({"rows": pl.Int64})


def law(per_gene_mb: float | None = None, cell: float = 2.25) -> MemoryLaw:
    return MemoryLaw(
        cell_bytes=cell, fixed_bytes=10_000, fixed_anonymous_bytes=9_000, group_bytes=0, group_rows=100,
        small_group_rows=100, page_rows=100, row_width=10, building_row_bytes=50,
        row_bytes=100, scoring_row_bytes=0, features=20, linear_width=20, stored_fraction=1.0, max_depth=6,
        node_bytes=100,
        per_gene_bytes=None if per_gene_mb is None else per_gene_mb * 2**20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("total", "size", "overlap", "expected"),
    [(9280, 1500, 0.1, 7), (9280, 1024, 0.1, 10), (9280, 256, 0.1, 41), (100, 1500, 0.1, 3), (3000, 1000, 0.0, 3)],
)
def test_instance_count_golden_cases(total: int, size: int, overlap: float, expected: int) -> None:
    assert instance_count(total, size, overlap, 3) == expected


@given(st.integers(3, 5000), st.integers(3, 40), st.floats(0, 0.9))
def test_smallest_covering_size_is_the_smallest(total: int, instances: int, overlap: float) -> None:
    size = smallest_covering_size(total, instances, overlap)
    assert instance_count(total, size, overlap, 1) <= instances
    assert size == 1 or instance_count(total, size - 1, overlap, 1) > instances


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(2, 18_000), min_size=6, max_size=120),
    budget=st.integers(20_000, 20_000_000),
    overlap=st.sampled_from([0.0, 0.1, 0.5]),
    most=st.integers(3, 60),
    strategy=st.sampled_from(["auto", "multi-instance"]),
)
def test_any_budget_is_kept_with_full_coverage_or_refused(
    rows: list[int], budget: int, overlap: float, most: int, strategy: str
) -> None:
    genes = gene_table(rows)
    options = Options(
        strategy=strategy, instance_overlap=overlap, max_instances=most, n_folds=2, genes_per_instance=40  # type: ignore[arg-type]
    )  # fmt: skip
    the_law = law()
    try:
        choice, _, alternatives = choose(genes, COLUMNS, options, the_law, Budget(bytes=budget, source="test"), SPEED)
    except BudgetError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert "--" in str(refusal.next_step)
        return
    assert choice.allocation is not None
    covered = {int(g) for part in choice.allocation.core for g in part}
    assert covered == set(range(len(rows)))
    assert sum(len(c) for c in choice.allocation.core) == len(rows)
    if choice.strategy == "multi-instance":
        assert 3 <= len(choice.allocation.core) <= most
        per_instance = choice.allocation.rows(np.array(rows))
        assert all(the_law.in_memory(int(r), 1) <= budget for r in per_instance)
        for core, extra in zip(choice.allocation.core, choice.allocation.overlap, strict=True):
            assert not set(core.tolist()) & set(extra.tolist())
            assert len(set(extra.tolist())) == len(extra)
    assert choice.peak is not None
    assert choice.peak <= budget
    assert sum(a.why_not is None for a in alternatives) == 1


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.integers(50, 500), min_size=150, max_size=400),
    instances=st.integers(3, 8),
    overlap=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 5),
)
def test_rows_are_even_where_gene_sizes_allow(rows: list[int], instances: int, overlap: float, seed: int) -> None:
    genes = gene_table(rows)
    size = smallest_covering_size(len(rows), instances, overlap)
    size += size // 10  # exactly equal gene counts would forbid equal rows
    allocation = allocate(
        genes, 2, instances=instances, genes_per_instance=size, overlap=overlap, by_split=False, seed=seed
    )
    load = allocation.rows(np.array(rows))
    assert (load.max() - load.min()) / load.mean() <= 0.05


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(8, 2000), min_size=30, max_size=80), st.randoms())
def test_the_order_of_the_gene_table_does_not_matter(rows: list[int], random: object) -> None:
    genes = gene_table(rows)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]

    def names(table: pl.DataFrame) -> list[tuple[set[str], set[str]]]:
        table = table.sort("gene_id")  # as build_index gives it
        a = allocate(table, 2, instances=4, genes_per_instance=30, overlap=0.1, by_split=False, seed=1)
        gene = table["gene_id"].to_numpy()
        return [(set(gene[c]), set(gene[o])) for c, o in zip(a.core, a.overlap, strict=True)]

    if len(rows) <= 4 * 30:
        assert names(genes) == names(genes[order])


def test_a_giant_gene_is_named_when_it_does_not_fit() -> None:
    genes = gene_table([100] * 50 + [17_629])
    options = Options(strategy="multi-instance", n_folds=2)
    with pytest.raises(BudgetError, match="gene G00050 alone has 17,629 rows"):
        choose(genes, COLUMNS, options, law(), Budget(bytes=400_000, source="test"), SPEED)


def test_split_groups_stay_in_one_instance() -> None:
    genes = gene_table([100] * 90).with_columns(split=pl.Series([f"L{i // 3:02d}" for i in range(90)]))
    allocation = allocate(genes, 2, instances=3, genes_per_instance=40, overlap=0.1, by_split=True, seed=0)
    home = np.empty(90, dtype=int)
    for index, core in enumerate(allocation.core):
        home[core] = index
    assert allocation.unit == "split group"
    assert all(len(set(home[i : i + 3])) == 1 for i in range(0, 90, 3))


def test_a_class_too_rare_for_every_instance_is_refused_with_the_reason() -> None:
    genes = gene_table([100] * 30).with_columns(n_1=pl.Series([5, 5] + [0] * 28))
    with pytest.raises(BudgetError, match="with class site"):
        choose(
            genes, COLUMNS, Options(strategy="multi-instance", n_folds=2), law(), Budget(bytes=1 << 30, source="test"),
            SPEED,
        )  # fmt: skip
