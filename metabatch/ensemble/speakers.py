"""Members' scores of genes that they did not train on, and their out-of-fold scores of genes that all trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metabatch.data.batches import Reader, RowCount, as_text
from metabatch.data.index import pieces_for
from metabatch.data.shards import shard_path
from metabatch.ensemble.estimator import MetaModel
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan
from metabatch.rundir.tables import home_instances, read_genes, read_segments


def speakers(run: RunDir, plan: Plan) -> dict[str, list[int]]:
    """gene_id -> the members (positions) that trained neither on it nor on its split group; genes in table order."""
    genes = read_genes(run)
    unit = "split_group" if plan.columns.split else "gene_id"
    of_gene = genes.select("gene_id", pl.col(unit).alias("unit"))
    trained = (
        pl.read_parquet(run.assignments).join(of_gene, on="gene_id").group_by("unit").agg(pl.col("instance").unique())
    )
    by_unit = {u: set(i) for u, i in zip(trained["unit"], trained["instance"].to_list(), strict=True)}
    return {
        gene: [m for m, p in enumerate(plan.instances) if p.index not in by_unit.get(u, ())]
        for gene, u in of_gene.iter_rows()
    }


def member_scores(
    run: RunDir, plan: Plan, model: MetaModel, may: Mapping[str, Sequence[int]], count: RowCount
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Stream the rows of the genes in `may`, with the probabilities of the members that may speak of each.

    Yields
    ------
    table : pyarrow.Table
        Features, label, ids, base scores and weight, as in the data set.
    proba : ndarray of float64, shape (members, n, k)
        NaN where a member may not speak.
    """
    if not may:
        return
    columns = plan.columns
    names = [*model.feature_names, columns.label, *columns.ids, *columns.scores.values()]
    if columns.weight:
        names.append(columns.weight)
    files = [shard_path(plan.dataset, s) for s in plan.dataset.shards]
    pieces = pieces_for(read_segments(run), list(may), files)
    allowed = {gene: _flags(members, len(model.members)) for gene, members in may.items()}
    for table in Reader(pieces, names, columns.group, count=count):
        gene = as_text(table.column(columns.group)).dictionary_encode().unify_dictionaries().combine_chunks()
        flags = np.stack([allowed[g] for g in gene.dictionary.to_pylist()])[gene.indices.to_numpy()]
        yield table, model.member_probabilities(table, flags.T, where=plan.dataset.path)


def out_of_fold_rows(run: RunDir, plan: Plan, genes: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of `genes` in oof.parquet, each gene from its home instance, in batches.

    Without the fold and the raw scores; a gene's rows are in the order of the data set.
    """
    if not genes:
        return
    homes = home_instances(run, plan)
    for planned in plan.instances:
        mine = homes.filter((pl.col("instance") == planned.index) & pl.col("gene_id").is_in(list(genes)))["gene_id"]
        if not mine.is_empty():
            yield from _read_out_of_fold(run.instance(planned.index).root / "oof.parquet", mine, plan)


def _read_out_of_fold(path: Path, genes: pl.Series, plan: Plan) -> Iterator[pa.Table]:
    drop = {"fold", *(f"{c}_raw" for c in plan.columns.classes)}
    names = [n for n in pq.read_schema(path).names if n not in drop]
    wanted = pa.array(genes.to_list(), pa.string())
    for batch in pq.ParquetFile(path).iter_batches(WHOLE_GROUP_ROWS, columns=names):
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.is_in(table.column("gene_id"), wanted))
        if table.num_rows:
            yield table


def _flags(members: Sequence[int], total: int) -> np.ndarray:
    found = np.zeros(total, dtype=bool)
    found[list(members)] = True
    return found
