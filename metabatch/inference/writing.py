"""The files of a part: parquet with its provenance, or gzip TSV. The same rows make the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.rundir.publish import named

_GZIP_LEVEL = 6
# Rows held as text.
_TEXT_ROWS = 1 << 14


@contextlib.contextmanager
def gzip_file(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """A gzip file of tab-separated lines, without names or times in its head; gives what appends a frame's rows.

    Numbers are written with the fewest digits that read back as the same float32; missing cells are empty.
    """
    with (
        named(path),
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=_GZIP_LEVEL) as handle,
    ):

        def write(frame: pl.DataFrame) -> None:
            for piece in frame.iter_slices(_TEXT_ROWS):
                text = io.BytesIO()
                piece.write_csv(text, separator="\t", include_header=False)
                handle.write(text.getbuffer())

        yield write


@contextlib.contextmanager
def tsv_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A part as gzip TSV with a header."""
    with gzip_file(path) as write:
        write(pl.DataFrame([schema.names], orient="row"))
        yield lambda table: write(as_frame(table))


@contextlib.contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """A part as parquet, with the metadata of `schema`."""
    # Dictionaries of scores take five times the time of writing, and save nothing.
    text = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    with named(path), pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=text) as writer:
        yield lambda table: writer.write_table(table) if table.num_rows else None


def as_frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"a table became {type(frame).__name__}")
    return frame
