"""Base scores that somebody made before, in a table: parquet or TSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.building.base import BaseDescription, Lookup, ScoreColumns, Source, source_of
from metabatch.building.base_scores import check_scores, remainder
from metabatch.building.base_text import ROWS_AT_ONCE, as_parquet, neither_of, refuse_twice
from metabatch.building.genes import ACCEPTOR, DONOR, NEITHER, Gene
from metabatch.data.batches import Piece, Reader, as_float32, as_numpy, as_text, whole_files
from metabatch.data.schema import BACKWARD, FORWARD
from metabatch.data.shards import open_parquet
from metabatch.errors import InputError


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
    known : sequence of Source
        `source_of` every file, where that is known.

    Attributes
    ----------
    lookup : Lookup
        What `columns` came to in this table.

    Raises
    ------
    InputError
        Unreadable, a column is missing, there twice or of the wrong kind, or the files of a folder have not the same.
    BudgetError
        Too little space in `scratch`.
    """

    flank = 0

    def __init__(self, path: Path, columns: ScoreColumns, scratch: Path, known: Sequence[Source] = ()) -> None:
        self.path, self.columns, self.name, self._known = Path(path), columns, Path(path).name, tuple(known)
        self._files = as_parquet(self.path, columns, Path(scratch))
        schemas = []
        for file in self._files:
            with open_parquet(file) as parquet:
                schemas.append(parquet.schema_arrow)
        has = set(schemas[0].names)
        self._by_gene = columns.gene in has
        self._key = columns.gene if self._by_gene else columns.chrom
        self._strand = columns.strand if columns.strand in has and not self._by_gene else None
        self._scores = {DONOR: columns.donor, ACCEPTOR: columns.acceptor}
        neither = neither_of(columns)
        # The default column may be missing; one that was named must be there.
        if neither is not None and (neither in has or columns.neither == neither):
            self._scores[NEITHER] = neither
        self.lookup = Lookup(
            scores=tuple(self._scores.values()), by="gene" if self._by_gene else "position",
            strand=self._strand is not None,
        )  # fmt: skip
        self._check_alike(schemas, {columns.gene, columns.strand, *filter(None, [neither])})
        for file, schema in zip(self._files, schemas, strict=True):
            self._check_columns(schema, self.path if self.path.is_file() else file)
        self._groups = whole_files(self._files)
        self._of_gene = self._index_genes() if self._by_gene else {}
        self._ranges = [] if self._by_gene else [self._range(piece) for piece in self._groups]

    @property
    def stranded(self) -> bool:
        """Whether a gene's scores are its own, or at least its strand's."""
        return self._by_gene or self._strand is not None

    def lacking(self, genes: Iterable[Gene]) -> list[str]:
        """Ids of the genes without a row; none where the table is looked up by position."""
        return [g.gene_id for g in genes if g.gene_id not in self._of_gene] if self._by_gene else []

    def describe(self) -> BaseDescription:
        """With the sha256 of every file."""
        files = [self.path] if self.path.is_file() else self._files
        sources = self._known or tuple(map(source_of, files))
        return BaseDescription(kind="table", sources=sources, columns=self.columns, lookup=self.lookup)

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:  # noqa: ARG002 (scores do not come from sequence)
        """As `BaseModel.scores`."""
        found = np.full((gene.length, 3), np.nan, dtype=np.float32)
        times = np.zeros(gene.length, dtype=np.int64)
        for table in self._tables(gene):
            index = gene.index(self._positions(table))
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

    def _positions(self, table: pa.Table) -> np.ndarray:
        try:
            return as_numpy(pc.fill_null(table.column(self.columns.position).cast(pa.int64()), 0))
        except pa.ArrowInvalid as error:
            raise InputError(
                f"the column {self.columns.position} of {self.name} holds a number that is no position: {error}",
                expected="positions from 1 to the contig's end",
                where=str(self.path),
            ) from None

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

    def _check_alike(self, schemas: Sequence[pa.Schema], optional: set[str]) -> None:
        """Columns that decide how scores are found are in all files of a folder, or in none."""
        for file, schema in zip(self._files, schemas, strict=True):
            other = optional & (set(schema.names) ^ set(schemas[0].names))
            if other:
                raise InputError(
                    f"{file.name} and {self._files[0].name}: one of them has no column {min(other)}",
                    expected="the same columns in all files of a table",
                    where=str(self.path),
                )

    def _check_columns(self, schema: pa.Schema, file: Path) -> None:
        wanted = [self._key, self.columns.position, *self._scores.values()]
        refuse_twice(schema.names, [*wanted, *filter(None, [self._strand])], file)
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
