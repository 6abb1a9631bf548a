"""Gene-grouped, class-stratified folds of an instance."""

from __future__ import annotations

import numpy as np
import polars as pl

from metabatch.data.index import class_column
from metabatch.data.partition import partition, seeded_rank, sizes_of, units_of


def gene_folds(genes: pl.DataFrame, classes: int, folds: int, seed: int, *, by_split: bool) -> dict[str, int]:
    """The fold of every gene.

    Parameters
    ----------
    genes : polars.DataFrame
        gene_id, rows, n_0.., split: the instance's genes, sorted.
    folds : int
        Number of folds; no unit (gene, or split group when `by_split`) is torn.

    Returns
    -------
    dict
        gene_id -> fold. Balanced by genes, rows and rows per class; depends on seed and table only.
    """
    units = units_of(genes, classes, by_split=by_split)
    rank = seeded_rank(units["unit"].to_list(), seed)
    bins = partition(sizes_of(units, classes), [1 / folds] * folds, rank)
    return {
        gene: int(fold)
        for members, fold in zip(units["members"], bins, strict=True)
        for gene in members
    }  # fmt: skip


def class_counts(gene: np.ndarray, label: np.ndarray, names: list[str], classes: int) -> pl.DataFrame:
    """Per-gene counts of an instance's rows: gene_id, rows, n_0.., in order of `names`."""
    table = np.zeros((len(names), classes), dtype=np.int64)
    np.add.at(table, (gene, label), 1)
    counts = {class_column(i): table[:, i] for i in range(classes)}
    return pl.DataFrame({"gene_id": names, "rows": table.sum(axis=1), **counts})
