"""Folds and holdout: whole groups, balanced, decided by seed and table alone."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.data.partition import partition, seeded_rank, sizes_of, units_of
from metabatch.training.folds import class_counts, gene_folds


def table(rows: list[int], split: list[str] | None = None) -> pl.DataFrame:
    names = [f"G{i:03d}" for i in range(len(rows))]
    return pl.DataFrame(
        {"gene_id": names, "rows": rows, "n_0": [r - 1 for r in rows], "n_1": [1] * len(rows), "split": split or names}
    )


@settings(deadline=None)
@given(st.lists(st.integers(2, 400), min_size=10, max_size=80), st.integers(2, 5))
def test_no_fold_is_empty_and_none_is_far_from_its_share(rows: list[int], folds: int) -> None:
    fold = gene_folds(table(rows), 2, folds, 3, by_split=False)
    counts = np.bincount(list(fold.values()), minlength=folds)
    assert counts.min() >= 1
    load = np.zeros(folds)
    for gene, number in fold.items():
        load[number] += rows[int(gene[1:])]
    assert load.max() <= sum(rows) / folds + 2 * max(rows)


def test_folds_keep_split_groups_whole() -> None:
    split = [f"L{i // 2}" for i in range(20)]
    fold = gene_folds(table([10] * 20, split), 2, 5, 0, by_split=True)
    assert all(fold[f"G{i:03d}"] == fold[f"G{i + 1:03d}"] for i in range(0, 20, 2))


def test_the_seed_changes_the_folds() -> None:
    rows = [50] * 40
    assert gene_folds(table(rows), 2, 4, 0, by_split=False) != gene_folds(table(rows), 2, 4, 1, by_split=False)
    assert gene_folds(table(rows), 2, 4, 7, by_split=False) == gene_folds(table(rows), 2, 4, 7, by_split=False)


def test_a_tenth_is_a_tenth_of_genes_rows_and_sites() -> None:
    rng = np.random.default_rng(0)
    genes = table(rng.integers(8, 2000, 500).tolist())
    units = units_of(genes, 2, by_split=False)
    bins = partition(sizes_of(units, 2), [0.1, 0.9], seeded_rank(units["unit"].to_list(), 0))
    held = genes.filter(pl.Series(bins == 0))
    assert abs(held.height / 500 - 0.1) < 0.02
    assert abs(held["rows"].sum() / genes["rows"].sum() - 0.1) < 0.02


def test_class_counts_count_every_gene_and_class() -> None:
    counts = class_counts(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ["A", "B"], 2)
    assert counts.rows() == [("A", 2, 1, 1), ("B", 3, 1, 2)]
