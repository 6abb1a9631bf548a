"""Streaming rows of chosen genes and columns, one piece of a row group at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metabatch.data.shards import open_parquet
from metabatch.errors import InputError
from metabatch.resources.law import JOINED_ROWS, PIECE_ROWS, WHOLE_GROUP_ROWS
from metabatch.rundir.manifests import CarriedType

# glibc's allocator for Arrow too: it gives memory back (see `trim_memory`), Arrow's own keeps it.
pa.set_memory_pool(pa.system_memory_pool())


@dataclass(frozen=True)
class Piece:
    """A row group to read. `genes`: the ones wanted; None when every row of the group is wanted."""

    file: Path
    row_group: int
    genes: pa.Array | None


@dataclass
class RowCount:
    """Rows decoded from parquet, and rows of the genes asked for among them."""

    read: int = 0
    asked: int = 0


@dataclass(frozen=True)
class Reader:
    """Reads `columns` of `pieces` in order: a table per row group, or several of a large one.

    A column a file lacks is simply not in its tables; the preprocessing object knows what that means. Row groups of
    up to `WHOLE_GROUP_ROWS` rows (or `rows_at_once`, for a few narrow columns) are decoded whole, larger ones by
    `PIECE_ROWS`, with a page a column in memory, and joined to `JOINED_ROWS`; tables have at most `rows_at_once` rows.
    """

    pieces: Sequence[Piece]
    columns: Sequence[str]
    group_column: str
    rows_at_once: int = WHOLE_GROUP_ROWS
    count: RowCount = field(default_factory=RowCount)

    def __iter__(self) -> Iterator[pa.Table]:
        for _, tables in self.by_piece():
            yield from tables

    def by_piece(self) -> Iterator[tuple[Piece, Iterator[pa.Table]]]:
        """Every piece with its tables, which are to be used up before the next; a file's footer is read once a run."""
        for file, pieces in itertools.groupby(self.pieces, lambda piece: piece.file):
            with open_parquet(file) as parquet:
                for piece in pieces:
                    yield piece, self.read(parquet, piece)

    def read(self, parquet: pq.ParquetFile, piece: Piece) -> Iterator[pa.Table]:
        """The tables of one piece of a file that is open already: to read a row group by several sets of columns."""
        present = set(parquet.schema_arrow.names)
        columns = [c for c in dict.fromkeys((*self.columns, self.group_column)) if c in present]
        try:
            for table in self._tables(parquet, piece.row_group, columns):
                self.count.read += table.num_rows
                wanted = table
                if piece.genes is not None:
                    wanted = table.filter(pc.is_in(as_text(table.column(self.group_column)), piece.genes))
                self.count.asked += wanted.num_rows
                for start in range(0, wanted.num_rows, self.rows_at_once):
                    yield wanted.slice(start, self.rows_at_once)
                del table, wanted  # before the next one is decoded
        except MemoryError:  # Arrow's own is an ArrowException too
            raise
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk or the network, not of the file
                raise
            raise InputError(
                f"{piece.file.name} is damaged: {str(error).splitlines()[0]}",
                where=f"{piece.file}, row group {piece.row_group}",
                next_step="write the file again",
            ) from None

    def _tables(self, parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.Table]:
        if parquet.metadata.row_group(group).num_rows <= max(self.rows_at_once, WHOLE_GROUP_ROWS):
            yield parquet.read_row_group(group, columns=columns)
            return
        rows = self.rows_at_once if self.rows_at_once > WHOLE_GROUP_ROWS else PIECE_ROWS
        together = max(1, min(self.rows_at_once, JOINED_ROWS) // rows)
        for batches in itertools.batched(parquet.iter_batches(rows, row_groups=[group], columns=columns), together):
            yield pa.Table.from_batches(batches)
            del batches  # before the next ones are decoded


def joined(sizes: Iterable[int], rows_at_once: int = WHOLE_GROUP_ROWS) -> list[tuple[int, ...]]:
    """Which tables of a reader make a batch of the matrix together, by their rows.

    Every batch becomes a page of external memory, and each page costs memory (a block a node of the tree) and time:
    tables are put together as long as they have no more than `JOINED_ROWS` rows, nor more than `rows_at_once`.
    """
    batches: list[tuple[int, ...]] = []
    held: list[int] = []
    for size in sizes:
        if held and sum(held) + size > min(JOINED_ROWS, rows_at_once):
            batches.append(tuple(held))
            held = []
        held.append(size)
    return [*batches, tuple(held)] if held else batches


def ahead[T](source: Iterator[T]) -> Iterator[T]:
    """`source`, whose next item is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, source, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, source, None)
            yield item


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A gene, label or id column as text: 1, "1" and a dictionary of "1" name the same thing."""
    return column if column.type == pa.string() else column.cast(pa.string())


def as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls as numpy; numbers in one chunk without a copy.

    Not by pyarrow's own conversion, which imports pandas when it is installed.
    """
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.from_dlpack(one_chunk(column))
    return pl.Series(pl.from_arrow(column)).to_numpy()


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece; copied only when it is in several."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def whole_files(files: Sequence[Path]) -> list[Piece]:
    """Every row group of every file."""
    pieces = []
    for file in files:
        with open_parquet(file) as parquet:
            pieces += [Piece(file, i, None) for i in range(parquet.num_row_groups)]
    return pieces


def carried(table: pa.Table, types: Mapping[str, CarriedType]) -> dict[str, pa.ChunkedArray]:
    """Columns carried to an output, in the types planned for all shards; a column absent here is null."""
    found = {}
    for name, kind in types.items():
        target = pa.type_for_alias(kind)
        if name in table.column_names:
            found[name] = table.column(name).cast(target, safe=kind != "double")
        else:
            found[name] = pa.chunked_array([pa.nulls(table.num_rows, target)])
    return found


def as_float32(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Scores and weights as stored in outputs; an integer beyond 2^24 is rounded, as any float32 is."""
    return column.cast(pa.float32(), safe=False)


def as_values(column: pa.ChunkedArray) -> np.ndarray:
    """A copy of the numbers as the matrix holds them, 32 bits at most: integers without gaps as they are, all others
    float32, NaN where missing; infinite where beyond float32."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not pa.types.is_integer(column.type) or column.type.bit_width == 64 or column.null_count:
        with np.errstate(over="ignore"):
            return np.array(pl.Series(pl.from_arrow(as_float32(column))).to_numpy(), dtype=np.float32)
    return np.array(as_numpy(column))
