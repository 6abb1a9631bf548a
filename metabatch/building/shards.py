"""Shards of a data set: which genes are in which, and how one is written, a row group in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.building.features import FeatureSpec, arrow_array, feature_schema, rows_at_once
from metabatch.building.genes import CLASSES, Gene
from metabatch.building.positions import ID_SCHEMA, Positions, ids_of
from metabatch.building.rows import RowSampling, select_rows
from metabatch.resources.usage import map_large_blocks, trim_memory
from metabatch.rundir.publish import named

# Of a row group, which readers decode whole: rows, or a few more, and bytes at most.
GROUP_ROWS, GROUP_BYTES = 16_384, 64_000_000
# What a text column takes of a row, decoded (ids are short).
_TEXT_BYTES = 24


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


def shard_schema(spec: FeatureSpec) -> pa.Schema:
    """Ids, label, features and weight, in the order of the columns."""
    return pa.schema(
        [*ID_SCHEMA, ("splice_type", pa.string()), *feature_schema(spec), ("sampling_weight", pa.float32())]
    )


def group_rows(spec: FeatureSpec) -> int:
    """Rows from which a row group is closed; with the last block it holds `GROUP_BYTES` at most."""
    kinds = shard_schema(spec).types
    row = sum(_TEXT_BYTES if kind == pa.string() else kind.bit_width // 8 for kind in kinds)
    rows = GROUP_BYTES // row
    return max(min(GROUP_ROWS, max(rows - rows_at_once(spec), rows // 2)), 1)


def write_shard(
    path: Path, plan: ShardPlan, positions: Positions, sampling: RowSampling, seed: int, stop: Callable[[], None]
) -> int:
    """Write one shard, zstd with checksums; its rows. `stop` is called between genes, and may raise."""
    map_large_blocks()  # the contexts of a thousand columns' compression were up to 130 MB of freed heap
    schema = shard_schema(positions.spec)
    texts = [f.name for f in schema if f.type == pa.string()]  # dictionaries of numbers cost more time than room
    rows = 0
    with (
        named(path),
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True, use_dictionary=texts) as writer,
    ):
        for blocks in _groups(_blocks(plan, positions, sampling, seed, stop), group_rows(positions.spec)):
            table = _table(blocks, schema)
            blocks.clear()  # the generator holds the list, too; what they held is room for the writing
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
            del table
            trim_memory()
    return rows


@dataclass(frozen=True)
class _Block:
    """Rows of a gene: positions (index), labels, weights and features, one array a column."""

    gene: Gene
    index: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    features: list[np.ndarray]


def _groups(blocks: Iterator[_Block], rows: int) -> Iterator[list[_Block]]:
    """As many blocks as make so many rows or a little more."""
    held: list[_Block] = []
    for block in blocks:
        held.append(block)
        if sum(len(b.index) for b in held) >= rows:
            yield held
            held = []
    if held:
        yield held


def _table(blocks: Sequence[_Block], schema: pa.Schema) -> pa.Table:
    """Joined by numpy: a thousand columns of every gene as Arrow arrays would take longer than computing them."""
    ids = pa.concat_batches([pa.RecordBatch.from_arrays(ids_of(b.gene, b.index), schema=ID_SCHEMA) for b in blocks])
    label = pa.array(np.array(CLASSES, dtype=object)[np.concatenate([b.label for b in blocks])], pa.string())
    columns = zip(*(b.features for b in blocks), strict=True)
    features = [arrow_array(np.concatenate(parts)) for parts in columns]
    weight = arrow_array(np.concatenate([b.weight for b in blocks]))
    return pa.Table.from_arrays([*ids.columns, label, *features, weight], schema=schema)


def _blocks(
    plan: ShardPlan, positions: Positions, sampling: RowSampling, seed: int, stop: Callable[[], None]
) -> Iterator[_Block]:
    step = min(rows_at_once(positions.spec), group_rows(positions.spec))
    for gene, target in zip(plan.genes, plan.targets, strict=True):
        stop()
        material, labels = positions.material(gene), gene.labels()
        index, weight = select_rows(sampling, gene.gene_id, labels, material.scores, target, seed)
        if gene.strand == "-":  # ascending by position, as every reader expects
            index, weight = index[::-1], weight[::-1]
        for start in range(0, len(index), step):
            here = index[start : start + step]
            features = positions.features(material, here)
            yield _Block(gene, here, labels[here], weight[start : start + step], features)
