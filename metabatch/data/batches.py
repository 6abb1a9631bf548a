"""Streaming rows of chosen genes and columns, one piece of a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.data.shards import open_parquet
from metabatch.errors import InputError

BATCH_ROWS = 16_384


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
    """Reads `columns` of `pieces` in order, in batches of at most `batch_rows` rows.

    A column a file lacks is simply not in its batches; the preprocessing object knows what that means.
    Memory is bounded by the compressed row group plus one decoded batch, whatever the number of rows.
    """

    pieces: Sequence[Piece]
    columns: Sequence[str]
    group_column: str
    batch_rows: int = BATCH_ROWS
    count: RowCount = field(default_factory=RowCount)

    def __iter__(self) -> Iterator[pa.Table]:
        for piece in self.pieces:
            yield from self._read(piece)

    def _read(self, piece: Piece) -> Iterator[pa.Table]:
        with open_parquet(piece.file) as parquet:
            present = set(parquet.schema_arrow.names)
            columns = [c for c in dict.fromkeys((*self.columns, self.group_column)) if c in present]
            try:
                for batch in parquet.iter_batches(self.batch_rows, row_groups=[piece.row_group], columns=columns):
                    table = pa.Table.from_batches([batch])
                    self.count.read += table.num_rows
                    if piece.genes is not None:
                        table = table.filter(pc.is_in(as_text(table.column(self.group_column)), piece.genes))
                    self.count.asked += table.num_rows
                    if table.num_rows:
                        yield table
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{piece.file.name} is damaged: {str(error).splitlines()[0]}",
                    where=f"{piece.file}, row group {piece.row_group}",
                    next_step="write the file again",
                ) from None


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A gene, label or id column as text: 1, "1" and a dictionary of "1" name the same thing."""
    return column if column.type == pa.string() else column.cast(pa.string())


def as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls as numpy, without a copy where it is one chunk.

    By way of polars: pyarrow's own conversion imports pandas when it is installed.
    """
    return pl.Series(pl.from_arrow(column)).to_numpy()


def whole_files(files: Sequence[Path]) -> list[Piece]:
    """Every row group of every file."""
    pieces = []
    for file in files:
        with open_parquet(file) as parquet:
            pieces += [Piece(file, i, None) for i in range(parquet.num_row_groups)]
    return pieces


def carried(table: pa.Table, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns carried to an output, in a type that does not depend on the shard.

    Integers become int64, other numbers float64, everything else text; absent columns are left out.
    """
    found = {}
    for name in names:
        if name in table.column_names:
            column = table.column(name)
            if pa.types.is_integer(column.type):
                found[name] = column.cast(pa.int64())
            elif pa.types.is_floating(column.type):
                found[name] = column.cast(pa.float64())
            else:
                found[name] = as_text(column)
    return found
