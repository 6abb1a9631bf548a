"""Shards of a data set: which genes are in which, and how one is written, a row group in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.building.genes import CLASSES, Gene
from metabatch.building.positions import ID_SCHEMA, Positions
from metabatch.building.rows import RowSampling, select_rows
from metabatch.rundir.publish import named

# Rows of a row group: decoded whole by every reader.
GROUP_ROWS = 16_384
# Rows whose features are computed together.
_CHUNK_ROWS = 8_192


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be made. targets : rows each gene is to have."""

    name: str
    genes: tuple[Gene, ...]
    targets: tuple[int, ...]


def cut_shards(genes: Sequence[Gene], targets: Sequence[int], sampling: RowSampling, most_rows: int) -> list[ShardPlan]:
    """Whole loci, in order, as long as a shard is expected to have at most `most_rows` rows."""
    shards: list[ShardPlan] = []
    held: list[tuple[Gene, int]] = []
    rows = 0

    def close() -> None:
        name = f"positions-{len(shards):05d}.parquet"
        shards.append(ShardPlan(name, tuple(g for g, _ in held), tuple(t for _, t in held)))

    for _, locus in groupby(zip(genes, targets, strict=True), lambda pair: pair[0].locus_id):
        members = [(gene, int(target)) for gene, target in locus]
        size = sum(gene.length if sampling.all_positions else min(gene.length, target) for gene, target in members)
        if held and rows + size > most_rows:
            close()
            held, rows = [], 0
        held += members
        rows += size
    if held:
        close()
    return shards


def shard_schema(positions: Positions) -> pa.Schema:
    """Ids, label, features and weight, in the order of the columns."""
    ids_and_features = positions.schema
    features = [f for f in ids_and_features if f.name not in ID_SCHEMA.names]
    ids = [f for f in ids_and_features if f.name in ID_SCHEMA.names]
    return pa.schema([*ids, ("splice_type", pa.string()), *features, ("sampling_weight", pa.float32())])


def write_shard(
    path: Path, plan: ShardPlan, positions: Positions, sampling: RowSampling, seed: int, stop: Callable[[], None]
) -> int:
    """Write one shard, zstd with checksums; its rows. `stop` is called between genes, and may raise."""
    schema = shard_schema(positions)
    rows = 0
    texts = [f.name for f in schema if f.type == pa.string()]  # dictionaries of numbers cost more time than room
    with (
        named(path),
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, use_dictionary=texts) as writer,
    ):
        for table in _groups(_batches(plan, positions, sampling, seed, stop), schema):
            writer.write_table(table, row_group_size=GROUP_ROWS)
            rows += table.num_rows
    return rows


def _groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of `GROUP_ROWS` rows, the last one with the rest."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        start = 0
        while rows + batch.num_rows - start >= GROUP_ROWS:
            held.append(batch.slice(start, GROUP_ROWS - rows))
            start += GROUP_ROWS - rows
            yield pa.Table.from_batches(held, schema).combine_chunks()
            held, rows = [], 0
        if start < batch.num_rows:
            held.append(batch.slice(start))
            rows += batch.num_rows - start
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks()


def _batches(
    plan: ShardPlan, positions: Positions, sampling: RowSampling, seed: int, stop: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    schema = shard_schema(positions)
    for gene, target in zip(plan.genes, plan.targets, strict=True):
        stop()
        material, labels = positions.material(gene), gene.labels()
        index, weight = select_rows(sampling, gene.gene_id, labels, material.scores, target, seed)
        if gene.strand == "-":  # ascending by position, as every reader expects
            index, weight = index[::-1], weight[::-1]
        for start in range(0, len(index), _CHUNK_ROWS):
            here = index[start : start + _CHUNK_ROWS]
            batch = positions.rows(material, here)
            label = pa.array(np.array(CLASSES, dtype=object)[labels[here]], pa.string())
            own = {"splice_type": label, "sampling_weight": pa.array(weight[start : start + _CHUNK_ROWS])}
            columns = [own[f.name] if f.name in own else batch.column(f.name) for f in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
