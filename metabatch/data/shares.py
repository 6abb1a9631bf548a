"""The rows of a model that several workers train: which genes are whose, and what a worker reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from metabatch.data.batches import Piece


@dataclass(frozen=True)
class Share:
    """What one worker holds in its matrix. `batches`: as in `metabatch.training.matrix.Rows`; `rows`: how many."""

    pieces: Sequence[Piece]
    batches: Sequence[tuple[int, ...]]
    rows: int

    def __len__(self) -> int:
        return self.rows


def shares_of(genes: pl.DataFrame, segments: pl.DataFrame, workers: int) -> list[list[str]]:
    """The genes of each worker, sorted: cut from the order in which they lie in the files, at equal rows.

    So a row group is read by one worker, or by two where the cut goes through it. The shares differ from equal ones by
    less than the largest gene; every worker has at least one gene.

    Parameters
    ----------
    genes : polars.DataFrame
        gene_id, rows; no fewer genes than workers.
    segments : polars.DataFrame
        As in `metabatch.data.index.GeneIndex`.
    """
    if workers > genes.height:
        raise ValueError(f"{genes.height} genes for {workers} workers")
    places = segments.with_row_index("place").group_by("gene_id").agg(pl.col("place").min())
    ordered = genes.select("gene_id", "rows").join(places, on="gene_id").sort("place", "gene_id")
    rows = ordered["rows"].to_numpy()
    middle = (np.cumsum(rows) - rows / 2) / rows.sum()
    owner = np.minimum((middle * workers).astype(np.int64), workers - 1)
    # A gene larger than a share must not leave the others without any.
    number = np.arange(len(owner))
    owner = np.maximum(owner, workers - (len(owner) - number))
    for at in range(len(owner)):
        owner[at] = min(owner[at], (owner[at - 1] if at else -1) + 1)
    return [ordered["gene_id"].gather(np.flatnonzero(owner == w)).sort().to_list() for w in range(workers)]


def share_spread(genes: pl.DataFrame, segments: pl.DataFrame, workers: int) -> float:
    """Rows of the largest share, by those of an equal share; 1 where there are too few genes for the workers."""
    if workers > genes.height:
        return 1.0
    rows = dict(genes.select("gene_id", "rows").iter_rows())
    largest = max(sum(rows[gene] for gene in share) for share in shares_of(genes, segments, workers))
    return largest * workers / sum(rows.values())
