"""A student's soft labels, put beside the rows of its matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from metabatch.errors import InputError
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.training.matrix import Rows


def with_soft_labels(rows: Rows, path: Path, classes: Sequence[str]) -> Rows:
    """`rows` with their soft labels from soft_labels.parquet, where a gene's rows are in the order of the data set.

    Raises
    ------
    InputError
        A gene with more or fewer soft labels than rows.
    """
    # Where the rows of each gene stand in the matrix: gene after gene, in matrix order.
    places = np.argsort(rows.gene, kind="stable")
    begin = np.concatenate([[0], np.cumsum(np.bincount(rows.gene, minlength=len(rows.genes)))])
    taken = np.zeros(len(rows.genes), dtype=np.int64)
    codes = pl.DataFrame({"gene_id": rows.genes}).with_row_index("code")
    soft = np.empty((len(rows), len(classes)), dtype=np.float32, order="F")  # a column is a label of the matrix
    names = [f"{c}_soft" for c in classes]
    for batch in pq.ParquetFile(path).iter_batches(WHOLE_GROUP_ROWS, columns=["gene_id", *names]):
        here = pl.DataFrame(pl.from_arrow(batch)).join(codes, on="gene_id", maintain_order="left")
        if here.is_empty():
            continue
        code = here["code"].to_numpy()
        nth = taken[code] + here.select(pl.int_range(pl.len()).over("code")).to_series().to_numpy()
        np.add.at(taken, code, 1)
        _check(rows, np.flatnonzero(taken > np.diff(begin)), taken, begin)
        soft[places[begin[code] + nth]] = here.select(names).to_numpy()
    _check(rows, np.flatnonzero(taken != np.diff(begin)), taken, begin)
    return replace(rows, soft=soft)


def _check(rows: Rows, odd: np.ndarray, taken: np.ndarray, begin: np.ndarray) -> None:
    if len(odd):
        gene = odd[0]
        raise InputError(
            f"gene {rows.genes[gene]} has {taken[gene]:,} soft labels",
            expected=f"one for each of its {np.diff(begin)[gene]:,} rows",
            where="soft_labels.parquet",
            next_step="distill again, into a new run directory",
        )
