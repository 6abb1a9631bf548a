"""A shard without the dropped columns, in bounded memory however wide or long its row groups are.

A row group that is small when decoded goes through as it is. A larger one is read a block of columns at a time, each
into a file of rows in Arrow's stream format; then all files are read side by side, some thousand rows at a time, which
become the new row groups. So neither all columns of a large row group nor a page of each are ever held.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.data.batches import Piece, Reader, as_values
from metabatch.data.shards import cell_bytes, open_parquet
from metabatch.pruning.columns import blocks
from metabatch.pruning.sample import finite
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import trim_memory
from metabatch.rundir.publish import named

log = logging.getLogger(__name__)
# Most rows of a row group, and what it may take when decoded; rows are cut by the step.
GROUP_ROWS, GROUP_BYTES, _STEP = 32_768, 128 << 20, 1_024


def rewrite(
    file: Path, target: Path, scratch: Path, dropped: Collection[str], numbers: Collection[str],
    protected: Mapping[str, str], progress: Progress, stop: StopFlag,
) -> int:  # fmt: skip
    """Write `file` without the columns `dropped` to `target`; the rows written.

    Row groups stay as they are, in zstd, but for those of more than `GROUP_ROWS` rows or `GROUP_BYTES` bytes.

    Parameters
    ----------
    scratch : Path
        An empty folder.
    numbers : collection of str
        Columns that have to be finite.
    protected : mapping
        Column -> why it stays.

    Raises
    ------
    InputError
        A damaged file, or infinite values.
    """
    rows = 0
    with open_parquet(file) as parquet:
        schema = _without(parquet.schema_arrow, dropped)
        cells = cell_bytes(schema)
        floats = [f.name for f in schema if f.name in numbers and pa.types.is_floating(f.type)]
        with named(target), _writer(target, schema) as writer:
            for group in range(parquet.num_row_groups):
                stop.check()
                for table in _tables(parquet, Piece(file, group, None), schema, cells, scratch, stop):
                    for name in floats:
                        finite(as_values(table.column(name)), name, file.name, protected)
                    # Types of a shard are those of its schema; only what a stream says of its batches differs.
                    writer.write_table(table.cast(schema), row_group_size=table.num_rows)
                    rows += table.num_rows
                    progress.advance(table.num_rows)
                    stop.check()
                    del table  # before the next one is read
                trim_memory()
    return rows


def _without(schema: pa.Schema, dropped: Collection[str]) -> pa.Schema:
    """The columns that stay, with the file's own metadata; that of pandas names columns that may be gone."""
    kept = pa.schema([field for field in schema if field.name not in dropped])
    return kept.with_metadata({k: v for k, v in (schema.metadata or {}).items() if k != b"pandas"} or None)


def _writer(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Dictionaries of scores take five times the time of writing, and save nothing.
    listed = [f.name for f in schema if not (pa.types.is_floating(f.type) or pa.types.is_nested(f.type))]
    return pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=listed, write_page_checksum=True)


def _tables(
    parquet: pq.ParquetFile, piece: Piece, schema: pa.Schema, cells: Mapping[str, int], scratch: Path, stop: StopFlag
) -> Iterator[pa.Table]:
    """A row group as tables that become row groups."""
    rows, row = parquet.metadata.row_group(piece.row_group).num_rows, max(1, sum(cells.values()))
    if rows * row <= GROUP_BYTES:
        yield from Reader([], schema.names, schema.names[0], GROUP_ROWS).read(parquet, piece)
        return
    step = max(_STEP, min(GROUP_ROWS, GROUP_BYTES // row) // _STEP * _STEP)
    log.debug("%s, row group %d: %d rows of %d bytes by way of the disk", piece.file.name, piece.row_group, rows, row)
    parts = blocks(cells, schema.names, rows)
    files = [scratch / str(number) for number in range(len(parts))]
    for names, path in zip(parts, files, strict=True):
        stop.check()
        own = pa.schema([schema.field(n) for n in names])
        with named(path), pa.OSFile(str(path), "wb") as handle, pa.ipc.new_stream(handle, own) as stream:
            for table in _steps(Reader([], names, names[0], step).read(parquet, piece), step):
                stream.write_table(table.cast(own))
                del table
    yield from _side_by_side(files, parts, schema)
    for path in files:
        path.unlink()


def _steps(tables: Iterator[pa.Table], step: int) -> Iterator[pa.Table]:
    """The same rows, so many at a time, each in one chunk, whatever their size was."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(t.num_rows for t in held) >= step:
            together = pa.concat_tables(held)
            yield together.slice(0, step).combine_chunks()
            held = [together.slice(step)]
        del table
    rest = pa.concat_tables(held) if held else None
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()


def _side_by_side(files: Sequence[Path], parts: Sequence[Sequence[str]], schema: pa.Schema) -> Iterator[pa.Table]:
    with contextlib.ExitStack() as stack:
        streams = [
            pa.ipc.open_stream(stack.enter_context(pa.OSFile(str(path), "rb"))) for path in files
        ]  # fmt: skip
        for batches in zip(*streams, strict=True):
            arrays = {n: b.column(n) for names, b in zip(parts, batches, strict=True) for n in names}
            yield pa.table([arrays[n] for n in schema.names], schema=schema)
            del batches, arrays


def disk_space(out: Path, files: Sequence[Path], dropped: Collection[str]) -> None:
    """Warn where the kept columns of `files` take more than is free where `out` will lie."""
    needed = 0
    for file in files:
        with open_parquet(file) as parquet:
            meta = parquet.metadata
            kept = [n for n, name in enumerate(meta.schema.names) if name not in dropped]
            for group in range(meta.num_row_groups):
                needed += sum(meta.row_group(group).column(n).total_compressed_size for n in kept)
    place = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        log.warning("the kept columns take about %.1f GB, %.1f GB are free in %s", needed / 2**30, free / 2**30, place)
