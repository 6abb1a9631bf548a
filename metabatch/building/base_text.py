"""Tables of base scores as parquet, whatever they come as."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from metabatch.building.base import ScoreColumns
from metabatch.building.copies import complete_gzip, copy_stem, is_gzip, need_space
from metabatch.data.shards import find_parquet
from metabatch.errors import InputError

# Rows decoded at once: a few narrow columns.
ROWS_AT_ONCE = 131_072
# Text of scores takes more than parquet of them; unpacked, packed text about four times as much.
_UNPACKED_RATIO = 4


def neither_of(columns: ScoreColumns) -> str | None:
    """The column that the score of neither is in, if there is one."""
    return "neither_score" if isinstance(columns.neither, msgspec.UnsetType) else columns.neither


def refuse_twice(names: Sequence[str], wanted: Collection[str], path: Path) -> None:
    """One of the wanted columns twice: which of them holds the scores?"""
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise InputError(
            f"{path.name} has {names.count(twice[0])} columns named {twice[0]}",
            expected="each column once",
            where=str(path),
            next_step="rename or take out all but one",
        )


def as_parquet(path: Path, columns: ScoreColumns, scratch: Path) -> list[Path]:
    """The parquet files of a table: its own, those of a folder, or what a TSV file is turned into, once.

    Raises
    ------
    InputError
        None of these, or a TSV file without the columns, with one twice, or with values of another kind.
    BudgetError
        Too little space in `scratch`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", expected="a table of scores: parquet, or TSV with a header")
    if path.is_dir():
        return find_parquet(path)
    with path.open("rb") as handle:
        if handle.read(4) == b"PAR1":
            return [path]
    names = hashlib.sha256(msgspec.json.encode(columns)).hexdigest()[:8]
    copy = scratch / f"{copy_stem(path)}-{names}.parquet"
    if not copy.is_file():
        packed = is_gzip(path)
        need_space(scratch, path.stat().st_size * (_UNPACKED_RATIO if packed else 1), f"reading {path.name}",
                   "give the scores as parquet")  # fmt: skip
        with tempfile.TemporaryDirectory(dir=scratch) as folder, complete_gzip(path):
            made = Path(folder) / "scores.parquet"
            _convert(path, made, columns, packed=packed)
            os.replace(made, copy)
    return [copy]


def _convert(path: Path, made: Path, columns: ScoreColumns, *, packed: bool) -> None:
    """TSV to parquet, a bounded number of rows in memory."""
    types: dict[str, pa.DataType] = dict.fromkeys((columns.gene, columns.chrom, columns.strand), pa.string())
    types[columns.position] = pa.int64()
    types |= dict.fromkeys(filter(None, (columns.donor, columns.acceptor, neither_of(columns))), pa.float32())
    header = next(_text(path, packed=packed), b"").decode("utf-8", "replace").rstrip("\r\n").split("\t")
    wanted = [name for name in header if name in types]
    if not wanted:
        raise InputError(
            f"{path.name} has none of the columns of scores",
            expected=f"parquet, or TSV with a header that has {', '.join(types)}",
            where=f"{path}, which begins with {', '.join(header[:6])[:120]!r}",
        )
    refuse_twice(header, types, path)
    schema = pa.schema([(name, types[name]) for name in wanted])
    try:
        with _open(path, packed=packed) as text, pq.ParquetWriter(made, schema, compression="zstd") as writer:
            batches = pcsv.open_csv(
                text,
                parse_options=pcsv.ParseOptions(delimiter="\t", quote_char=False),
                convert_options=pcsv.ConvertOptions(column_types=types, include_columns=wanted),
            )
            held: list[pa.RecordBatch] = []
            for batch in batches:
                held.append(batch)
                if sum(one.num_rows for one in held) >= ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_batches(held), row_group_size=ROWS_AT_ONCE)
                    held = []
            writer.write_table(pa.Table.from_batches(held, schema), row_group_size=ROWS_AT_ONCE)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path.name} cannot be read as a table: {str(error).splitlines()[0]}",
            expected="parquet, or TSV with a header",
            where=str(path),
        ) from None


def _open(path: Path, *, packed: bool) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if packed else path.open("rb")


def _text(path: Path, *, packed: bool) -> Iterator[bytes]:
    with _open(path, packed=packed) as handle:
        yield from handle
