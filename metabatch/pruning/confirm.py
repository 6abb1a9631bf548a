"""What the sample suspects, looked at in every row: constant, near-constant and duplicate features.

A column that is constant in all rows is so in the sample, and columns that are equal in all rows are equal there. So
the sample names all that can be, and only those are read. Values are compared as float32, as the trees see them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from metabatch.data.batches import Piece, Reader, as_values
from metabatch.data.roles import Candidate
from metabatch.data.shards import cell_bytes, open_parquet
from metabatch.pruning.columns import Table, blocks
from metabatch.pruning.sample import absent, finite
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag


@dataclass
class Seen:
    """A feature in all rows.

    value : the most frequent one in the sample (NaN: missing). same : rows that have it.
    digest : over all values in canonical order: equal digests (256 bits) are equal columns.
    """

    value: float
    same: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def look(self, values: np.ndarray) -> None:
        plain = canonical(values)
        self.same += int(np.isnan(plain).sum() if np.isnan(self.value) else (plain == np.float32(self.value)).sum())
        self.digest.update(plain.tobytes())


def canonical(values: np.ndarray) -> np.ndarray:
    """float32 with one bit pattern a value: no negative zero, one NaN."""
    plain = values.astype(np.float32) + np.float32(0)
    plain[np.isnan(plain)] = np.nan
    return plain


def most_frequent(values: np.ndarray) -> tuple[float, float]:
    """The most frequent value of a column (the lowest of several; NaN is one too), and its share of the rows."""
    found, counts = np.unique(values, return_counts=True, equal_nan=True)
    best = int(counts.argmax())
    return float(found[best]), float(counts[best] / len(values))


def equal_in_sample(values: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Groups of features with the same values in the sample."""
    groups = dict[bytes, list[str]]()
    for name, column in values.items():
        groups.setdefault(hashlib.sha256(canonical(column).tobytes()).digest(), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def look_at_all_rows(table: Table, names: Mapping[str, float], stop: StopFlag) -> dict[str, Seen]:
    """Read the columns `names` (with the value to count) in all rows, in canonical order, a block at a time.

    Raises
    ------
    InputError
        A damaged file, or infinite values.
    """
    wanted = [c for c in table.features if c.name in names]
    seen = {c.name: Seen(names[c.name]) for c in wanted}
    with Progress("all rows of suspects", table.rows if wanted else 0, "rows") as progress:
        for file, shard in zip(table.files, table.shards, strict=True) if wanted else ():
            with open_parquet(file) as parquet:
                cells = cell_bytes(parquet.schema_arrow)
                for group, rows in enumerate(shard.row_groups):
                    stop.check()
                    _look_at_absent(wanted, cells, rows, seen)
                    for block in blocks(cells, (c.name for c in wanted), rows):
                        for part in Reader([], block, block[0]).read(parquet, Piece(file, group, None)):
                            for name in block:
                                seen[name].look(finite(as_values(part.column(name)), name, file.name, table.protected))
                            del part  # before the next one is decoded
                    progress.advance(rows)
    return seen


def _look_at_absent(
    wanted: Collection[Candidate], cells: Mapping[str, int], rows: int, seen: Mapping[str, Seen]
) -> None:
    for candidate in wanted:
        if candidate.name not in cells:
            seen[candidate.name].look(absent(candidate, rows))
