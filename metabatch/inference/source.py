"""What predictions are made of: rows that come in parts. Here: parquet files; positions of a genome: genome.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from metabatch.data.batches import Piece
from metabatch.data.shards import find_parquet, open_parquet
from metabatch.ensemble.estimator import MetaModel
from metabatch.inference.modes import Output
from metabatch.inference.rows import Step, predict_rows
from metabatch.rundir.publish import sha256_file

PART_ROWS = 1_000_000


class Part(Protocol):
    """A piece of the output. stem : its file's name without the suffix; rows : of the data.

    origin : where they come from, for the metadata.
    """

    @property
    def stem(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def origin(self) -> dict[str, str]: ...


class Source[P: Part](Protocol):
    """Rows to predict on. where : for messages."""

    @property
    def where(self) -> str: ...

    def schemas(self) -> Mapping[str, pa.Schema]:
        """The columns, by file."""
        ...

    def inputs(self) -> dict[str, str]:
        """sha256 of all that decides the rows, by name."""
        ...

    def parts(self, most_rows: int) -> Sequence[P]:
        """All rows in order, of at most so many rows where they can be cut."""
        ...

    def steps(self, part: P, output: Output, estimator: MetaModel | None) -> Iterator[Step]:
        """The output of a part, in order."""
        ...


@dataclass(frozen=True)
class FilePart:
    """Row groups `first` to `last` of a file."""

    stem: str
    file: Path
    first: int
    last: int
    rows: int

    @property
    def origin(self) -> dict[str, str]:
        return {"source": self.file.name, "row_groups": f"{self.first}-{self.last}"}

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(self.file, group, None) for group in range(self.first, self.last + 1)]


class ParquetRows:
    """The rows of a parquet file, or of all in a folder."""

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        self._files = find_parquet(path)

    def schemas(self) -> dict[str, pa.Schema]:
        found = {}
        for file in self._files:
            with open_parquet(file) as parquet:
                found[file.name] = parquet.schema_arrow
        return found

    def inputs(self) -> dict[str, str]:
        return {file.name: sha256_file(file) for file in self._files}

    def parts(self, most_rows: int) -> list[FilePart]:
        """Of at most `most_rows` rows, or one row group; files without rows have none."""
        parts: list[FilePart] = []
        for file in self._files:
            with open_parquet(file) as parquet:
                groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            first, rows = 0, 0
            for number, size in enumerate(groups):
                if rows and rows + size > most_rows:
                    parts.append(FilePart(f"part-{len(parts):05d}", file, first, number - 1, rows))
                    first, rows = number, 0
                rows += size
            if rows:
                parts.append(FilePart(f"part-{len(parts):05d}", file, first, len(groups) - 1, rows))
        return parts

    def steps(self, part: FilePart, output: Output, estimator: MetaModel | None) -> Iterator[Step]:
        return predict_rows(output, estimator, part.pieces, part.file.name)
