"""The sample that pruning judges by: whole genes drawn over all shards, every feature of their rows."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metabatch.analysis.sampling import evenly
from metabatch.data.batches import Piece, Reader, as_text, as_values
from metabatch.data.index import GeneIndex, build_index, pieces_for
from metabatch.data.partition import seeded_rank
from metabatch.data.roles import Candidate
from metabatch.data.shards import cell_bytes, open_parquet
from metabatch.errors import InputError
from metabatch.pruning.columns import Table, blocks
from metabatch.pruning.record import Sampled
from metabatch.pruning.request import PruneRequest
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag

log = logging.getLogger(__name__)
# Rows without --sample-rows-per-shard (a correlation of 0.98 is then known to 0.0003), and what a sample may take.
SAMPLE_ROWS, SAMPLE_BYTES = 20_000, 128 << 20
# More rows would tell correlations no better, and leave room for some columns only in a block of them.
MOST_ROWS = 500_000
_NARROW = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2}


@dataclass(frozen=True)
class Sample:
    """values : feature -> its values, shape (n,), as `metabatch.data.batches.as_values` has them."""

    values: dict[str, np.ndarray]
    drawn: Sampled
    notes: tuple[str, ...]


def draw_sample(table: Table, request: PruneRequest, seed: int, stop: StopFlag) -> Sample:
    """Draw genes, as many from every shard, and read their rows.

    Raises
    ------
    InputError
        A feature with infinite values; whatever is wrong with genes, labels and weights.
    """
    index = build_index(table.files, [s.row_groups for s in table.shards], table.columns)
    shards = sum(s.rows > 0 for s in table.shards)
    most = max(1, min(MOST_ROWS, SAMPLE_BYTES // row_bytes(table.files, table.features)))
    asked = request.sample_rows_per_shard
    per_shard = max(1, min(-(-SAMPLE_ROWS // shards) if asked is None else asked, most // shards))
    notes = []
    if asked is not None and per_shard < asked:
        notes.append(
            f"--sample-rows-per-shard {asked:,} of {shards} shard(s) with {len(table.features):,} features are "
            f"more than {MOST_ROWS:,} rows or {SAMPLE_BYTES >> 20} MB: {per_shard:,} were taken"
        )
    genes = draw_genes(index, per_shard, seed)
    together = int(genes["rows"].sum())
    rows = min(together, per_shard * shards)
    drawn = Sampled(genes=genes.height, shards=shards, rows_per_shard=per_shard, rows_of_genes=together, rows=rows)
    log.info("sample: %s rows of %d genes in %d shard(s)", f"{rows:,}", genes.height, shards)
    pieces = pieces_for(index.segments, genes["gene_id"].to_list(), table.files)
    return Sample(_read(table, pieces, drawn, stop), drawn, tuple(notes))


def row_bytes(files: Sequence[Path], features: Sequence[Candidate]) -> int:
    """What a row of the sample takes. Integers become float32 with the first gap: by the footers where none can be."""
    narrow = {c.name: c.dtype for c in features if c.dtype in _NARROW and (c.group == "kmer" or not c.absent_from)}
    wide = 4 * (len(features) - len(narrow))
    for file in files:
        with open_parquet(file) as parquet:
            meta, schema = parquet.metadata, parquet.schema_arrow
            places = {meta.schema.column(n).path: n for n in range(meta.num_columns)}
            for name in [n for n in narrow if n in places]:
                chunks = (meta.row_group(g).column(places[name]) for g in range(meta.num_row_groups))
                if pa.types.is_null(schema.field(name).type) or any(_may_have_gaps(c) for c in chunks):
                    del narrow[name]
                    wide += 4
    return wide + sum(_NARROW[kind] for kind in narrow.values())


def _may_have_gaps(chunk: pq.ColumnChunkMetaData) -> bool:
    return not chunk.is_stats_set or not chunk.statistics.has_null_count or chunk.statistics.null_count > 0


def draw_genes(index: GeneIndex, per_shard: int, seed: int) -> pl.DataFrame:
    """Genes of every shard in seeded order until they have `per_shard` rows; one at least. gene_id, shard, rows.

    A gene in several shards counts where it begins. The order depends on the seed and the genes' names only.
    """
    homes = index.segments.group_by("gene_id").agg(pl.col("shard").min(), pl.col("rows").sum()).sort("gene_id")
    shuffled = homes[seeded_rank(homes["gene_id"].to_list(), seed).argsort()]
    before = (pl.col("rows").cum_sum() - pl.col("rows")).over("shard")
    return shuffled.filter(before < per_shard).sort("gene_id")


def _read(table: Table, pieces: list[Piece], drawn: Sampled, stop: StopFlag) -> dict[str, np.ndarray]:
    sample = {c.name: np.zeros(drawn.rows, np.dtype(c.dtype)) for c in table.features}
    seen = filled = 0
    with Progress("sample", len(pieces), "row groups") as progress:
        for file, of_file in itertools.groupby(pieces, lambda piece: piece.file):
            with open_parquet(file) as parquet:
                cells = cell_bytes(parquet.schema_arrow)
                for piece in of_file:
                    stop.check()
                    mine = np.concatenate(list(_wanted(parquet, piece, table.columns.group)))
                    # Of more rows than are held evenly chosen ones.
                    chosen = mine[evenly(seen, len(mine), drawn.rows, drawn.rows_of_genes)]
                    seen += len(mine)
                    _fill(sample, table, parquet, piece, cells, chosen, filled, stop)
                    filled += len(chosen)
                    progress.advance(1)
    return sample


def _wanted(parquet: pq.ParquetFile, piece: Piece, group: str) -> Iterator[np.ndarray]:
    """Places in the row group of the rows of its wanted genes."""
    start = 0
    for names in Reader([], [], group).read(parquet, Piece(piece.file, piece.row_group, None)):
        here = np.arange(start, start + names.num_rows)
        start += names.num_rows
        if piece.genes is not None:
            mask = pc.is_in(as_text(names.column(group)), piece.genes)
            here = here[pl.Series(pl.from_arrow(mask)).to_numpy()]
        yield here


def _fill(
    sample: dict[str, np.ndarray], table: Table, parquet: pq.ParquetFile, piece: Piece, cells: Mapping[str, int],
    rows: np.ndarray, start: int, stop: StopFlag,
) -> None:  # fmt: skip
    """Put the features of `rows` of a row group into `sample` from `start` on, a block of columns at a time."""
    whole = Piece(piece.file, piece.row_group, None)
    for candidate in table.features:
        if candidate.name not in cells:
            _put(sample, candidate.name, absent(candidate, len(rows)), start)
    size = parquet.metadata.row_group(piece.row_group).num_rows
    for block in blocks(cells, (c.name for c in table.features), size):
        stop.check()
        first = at = 0
        for part in Reader([], block, block[0]).read(parquet, whole):
            here = rows[(rows >= first) & (rows < first + part.num_rows)] - first
            picked = part.take(pa.array(here))
            for name in block:
                values = finite(as_values(picked.column(name)), name, piece.file.name, table.protected)
                _put(sample, name, values, start + at)
            first, at = first + part.num_rows, at + len(here)
            del part, picked  # before the next one is decoded


def _put(sample: dict[str, np.ndarray], name: str, values: np.ndarray, start: int) -> None:
    if values.dtype.kind == "f" and sample[name].dtype.kind != "f":  # integers with gaps
        sample[name] = sample[name].astype(np.float32)
    sample[name][start : start + len(values)] = values


def absent(candidate: Candidate, rows: int) -> np.ndarray:
    """What a feature holds in a shard without it: a k-mer counts as 0, any other is missing."""
    return np.zeros(rows, np.uint8) if candidate.group == "kmer" else np.full(rows, np.nan, np.float32)


def finite(values: np.ndarray, name: str, file: str, protected: Mapping[str, str]) -> np.ndarray:
    """`values`, of column `name` of a file. protected : column -> why it stays.

    Raises
    ------
    InputError
        Some are infinite.
    """
    if values.dtype.kind == "f" and np.isinf(values).any():
        raise InputError(
            f"column {name} holds infinite values (or numbers beyond float32)",
            expected="finite numbers, or null / NaN for missing",
            where=file,
            next_step="replace them in the data set"
            + (
                f" ({name} stays: {protected[name]})"
                if name in protected
                else f", or --exclude-features {name} to drop it"
            ),
        )
    return values
