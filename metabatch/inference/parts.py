"""The parts of a prediction: how the data is cut into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metabatch.data.batches import Piece
from metabatch.data.shards import open_parquet

PART_ROWS = 1_000_000


@dataclass(frozen=True)
class Part:
    """Row groups `first` to `last` of a file, one piece of the output. `stem`: its name without the suffix."""

    stem: str
    file: Path
    first: int
    last: int
    rows: int

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(self.file, group, None) for group in range(self.first, self.last + 1)]


def cut(files: Sequence[Path], most_rows: int = PART_ROWS) -> list[Part]:
    """The parts of all files in order: of at most `most_rows` rows, or one row group; files without rows have none."""
    parts: list[Part] = []
    for file in files:
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        first, rows = 0, 0
        for number, size in enumerate(groups):
            if rows and rows + size > most_rows:
                parts.append(Part(f"part-{len(parts):05d}", file, first, number - 1, rows))
                first, rows = number, 0
            rows += size
        if rows:
            parts.append(Part(f"part-{len(parts):05d}", file, first, len(groups) - 1, rows))
    return parts
