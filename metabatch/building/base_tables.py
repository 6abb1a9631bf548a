"""Base scores that somebody made before, in a table: parquet or TSV."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from metabatch.building.base import BaseDescription, ScoreColumns, source_of
from metabatch.building.base_scores import check_scores, remainder
from metabatch.building.copies import complete_gzip, copy_stem, is_gzip, need_space
from metabatch.building.genes import ACCEPTOR, DONOR, NEITHER, Gene
from metabatch.data.batches import Piece, Reader, as_float32, as_numpy, as_text, whole_files
from metabatch.data.schema import BACKWARD, FORWARD
from metabatch.data.shards import find_parquet, open_parquet
from metabatch.errors import InputError

# Rows decoded at once: a few narrow columns.
ROWS_AT_ONCE = 131_072
# Text of scores takes more than parquet of them; unpacked, packed text about four times as much.
_UNPACKED_RATIO = 4


class ScoreTable:
    """Scores by gene and position or by chrom, position and strand (see `ScoreColumns`).

    Only the row groups that may hold a gene are read: by an index of the genes (one pass over that column), or by the
    statistics of chrom and position, so that a table of the second kind wants to be sorted by them. Rows of a gene
    may come in any order; rows of other positions are passed over.

    Parameters
    ----------
    path : Path
        A parquet file or a folder of them, or a TSV file with a header, plain or gzip.
    scratch : Path
        Folder for the parquet that a TSV file is turned into, once.

    Raises
    ------
    InputError
        Unreadable, or a column is missing or of the wrong kind.
    BudgetError
        Too little space in `scratch`.
    """

    flank = 0

    def __init__(self, path: Path, columns: ScoreColumns, scratch: Path) -> None:
        self.path, self.columns, self.name = Path(path), columns, Path(path).name
        self._files = _as_parquet(self.path, columns, Path(scratch))
        schemas = []
        for file in self._files:
            with open_parquet(file) as parquet:
                schemas.append(parquet.schema_arrow)
        has = set(schemas[0].names)
        self._by_gene = columns.gene in has
        self._key = columns.gene if self._by_gene else columns.chrom
        self._strand = columns.strand if columns.strand in has and not self._by_gene else None
        self._scores = {DONOR: columns.donor, ACCEPTOR: columns.acceptor}
        if columns.neither is not None and columns.neither in has:
            self._scores[NEITHER] = columns.neither
        for file, schema in zip(self._files, schemas, strict=True):
            self._check_columns(schema, self.path if self.path.is_file() else file)
        self._groups = whole_files(self._files)
        self._of_gene = self._index_genes() if self._by_gene else {}
        self._ranges = [] if self._by_gene else [self._range(piece) for piece in self._groups]

    def describe(self) -> BaseDescription:
        """With the sha256 of every file."""
        files = [self.path] if self.path.is_file() else self._files
        return BaseDescription(kind="table", sources=tuple(map(source_of, files)), columns=self.columns)

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:  # noqa: ARG002 (scores do not come from sequence)
        """As `BaseModel.scores`."""
        found = np.full((gene.length, 3), np.nan, dtype=np.float32)
        times = np.zeros(gene.length, dtype=np.int64)
        for table in self._tables(gene):
            index = gene.index(as_numpy(pc.fill_null(table.column(self.columns.position).cast(pa.int64()), 0)))
            inside = (index >= 0) & (index < gene.length)
            index = index[inside]
            times += np.bincount(index, minlength=gene.length)
            for column, name in self._scores.items():
                values = pc.fill_null(as_float32(table.column(name)), float("nan"))
                found[index, column] = as_numpy(values)[inside]
        self._refuse(gene, times == 0, "have no score")
        self._refuse(gene, times > 1, "have several scores")
        if NEITHER not in self._scores:
            found[:, NEITHER] = remainder(found)
        check_scores(found, gene=gene, where=str(self.path))
        return found

    def _refuse(self, gene: Gene, bad: np.ndarray, what: str) -> None:
        if bad.any():
            first = gene.positions(np.flatnonzero(bad)[0])
            key = f"{self._key} {gene.gene_id if self._by_gene else gene.chrom}"
            raise InputError(
                f"{int(bad.sum())} of the {gene.length} positions of gene {gene.gene_id} {what}, the first at "
                f"{gene.chrom}:{first}",
                expected=f"one row a position, of {key} and {self.columns.position} {first}",
                where=str(self.path),
                next_step="give scores of every position of the genes, made on this genome and annotation",
            )

    def _tables(self, gene: Gene) -> Iterator[pa.Table]:
        """The rows that may be the gene's, some at a time."""
        key = gene.gene_id if self._by_gene else gene.chrom
        numbers = self._of_gene.get(key, ()) if self._by_gene else self._groups_over(gene)
        pieces = [Piece(self._groups[i].file, self._groups[i].row_group, pa.array([key])) for i in numbers]
        wanted = [self.columns.position, *self._scores.values(), *([self._strand] if self._strand else [])]
        for table in Reader(pieces, wanted, self._key, rows_at_once=ROWS_AT_ONCE):
            if self._strand is None:
                yield table
                continue
            same = FORWARD if gene.strand == "+" else BACKWARD
            yield table.filter(pc.is_in(as_text(table.column(self._strand)), pa.array(same)))

    def _index_genes(self) -> dict[str, list[int]]:
        """The row groups (numbers in `_groups`) each gene has rows in."""
        found: dict[str, list[int]] = {}
        reader = Reader(self._groups, [self._key], self._key, rows_at_once=ROWS_AT_ONCE)
        for number, (_, tables) in enumerate(reader.by_piece()):
            here: set[str] = set()
            for table in tables:
                here.update(filter(None, as_text(table.column(self._key)).unique().to_pylist()))
            for gene in here:
                found.setdefault(gene, []).append(number)
        return found

    def _groups_over(self, gene: Gene) -> list[int]:
        return [
            number
            for number, ((first, last), (low, high)) in enumerate(self._ranges)
            if (first is None or first <= gene.chrom <= last)
            and (low is None or (low <= gene.end and high >= gene.start))
        ]

    def _range(self, piece: Piece) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Smallest and largest chrom and position of a row group; None where its statistics do not tell."""
        with open_parquet(piece.file) as parquet:
            group, names = parquet.metadata.row_group(piece.row_group), parquet.schema.names
        found = []
        for column, kind in ((self.columns.chrom, str), (self.columns.position, int)):
            statistics = group.column(names.index(column)).statistics
            told = statistics is not None and statistics.has_min_max and isinstance(statistics.min, kind)
            found.append((statistics.min, statistics.max) if told else (None, None))
        return found[0], found[1]

    def _check_columns(self, schema: pa.Schema, file: Path) -> None:
        wanted = [self._key, self.columns.position, *self._scores.values()]
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise InputError(
                f"{file.name} has no column {', '.join(missing)}",
                expected=f"{self.columns.gene} or {self.columns.chrom}, and {', '.join(wanted[1:])}",
                where=f"{file}, with the columns {', '.join(schema.names[:12])}",
                next_step="name the columns with the scores",
            )
        for name in wanted[1:]:
            kind = schema.field(name).type
            right = pa.types.is_integer(kind) or (name != self.columns.position and pa.types.is_floating(kind))
            if not right:
                raise InputError(
                    f"the column {name} of {file.name} holds {kind}",
                    expected="whole numbers" if name == self.columns.position else "numbers",
                    where=str(file),
                )


def _as_parquet(path: Path, columns: ScoreColumns, scratch: Path) -> list[Path]:
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
    types |= dict.fromkeys(filter(None, (columns.donor, columns.acceptor, columns.neither)), pa.float32())
    header = next(_text(path, packed=packed), b"").decode("utf-8", "replace").rstrip("\r\n").split("\t")
    wanted = [name for name in header if name in types]
    if not wanted:
        raise InputError(
            f"{path.name} has none of the columns of scores",
            expected=f"parquet, or TSV with a header that has {', '.join(types)}",
            where=f"{path}, which begins with {', '.join(header[:6])[:120]!r}",
        )
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
