"""An instance whose genes are trained in parts, because nothing else fits: which genes go where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from metabatch.data.index import class_column
from metabatch.data.partition import partition, seeded_rank, sizes_of, units_of
from metabatch.rundir.manifests import Plan


def parts_of(genes: pl.DataFrame, parts: int, classes: int, seed: int, *, by_split: bool) -> list[list[str]]:
    """The genes in parts balanced by rows and classes, each sorted; split groups stay whole.

    Parameters
    ----------
    genes : polars.DataFrame
        gene_id, rows, n_0.. (as in the gene index), and split when `by_split`.
    """
    if parts == 1:
        return [genes["gene_id"].sort().to_list()]
    units = units_of(genes, classes, by_split=by_split)
    rank = seeded_rank(units["unit"].to_list(), seed)
    bins = partition(sizes_of(units, classes)[:, 1:], [1 / parts] * parts, rank)
    members = units["members"]
    return [sorted(g for i in np.flatnonzero(bins == part) for g in members[int(i)]) for part in range(parts)]


def untrainable(genes: pl.DataFrame, groups: Sequence[Sequence[str]], plan: Plan) -> str | None:
    """Why a part could not be trained and cross-validated, or None."""
    needed = 2 if plan.options.n_folds else 1
    unit = "split" if plan.columns.split else "gene_id"
    for number, names in enumerate(groups):
        part = genes.filter(pl.col("gene_id").is_in(pl.Series(names, dtype=pl.String).implode()))
        if part[unit].n_unique() < max(needed, plan.options.n_folds):
            return f"part {number} would have {part[unit].n_unique()} {unit} value(s)"
        for code, name in enumerate(plan.columns.classes):
            having = part.filter(pl.col(class_column(code)) > 0)[unit].n_unique()
            if having < needed:
                return f"part {number} would have {having} {unit} value(s) with class {name}"
    return None
