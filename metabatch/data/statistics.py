"""Per-feature statistics in one streaming pass: missing, zero, infinite, smallest, largest.

Parquet footers count nulls only, so a float NaN or an infinity is found by looking (FIELD_NOTES).
From these the plan chooses the missing-value policy, which decides more memory than any splitting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.data.batches import Piece, Reader, RowCount, as_numpy
from metabatch.data.layout import bin_counts, cell_bytes
from metabatch.data.roles import Candidate
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.rundir.manifests import ExcludedColumn, Feature, FeatureSet

# A feature may take zero-as-missing when at least this part of it is zero.
_SPARSE_FEATURE = 0.5
# The matrix takes it when it is cheaper, or when half of all cells drop out (several times faster trees) at
# no more than twice the bytes.
_SPARSE_MATRIX, _PRICE_OF_SPEED = 0.5, 2.0


@dataclass
class _Tally:
    seen: int = 0
    missing: int = 0
    zeros: int = 0
    low: float = np.inf
    high: float = -np.inf


def measure_features(
    pieces: Sequence[Piece], rows: int, candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn],
    group_column: str, count: RowCount, max_bin: int,
) -> FeatureSet:  # fmt: skip
    """Look at every cell of the candidates in `pieces` and decide the preprocessing.

    `count` receives the rows read and asked for; `max_bin` decides what a layout costs.

    Raises
    ------
    InputError
        A column with infinite values, naming it and the shard.
    """
    tallies = {c.name: _Tally() for c in candidates}
    total = 0
    names = [c.name for c in candidates]
    with Progress("feature scan", rows, "rows") as progress:
        for piece in pieces:
            for table in Reader([piece], names, group_column, count=count):
                total += table.num_rows
                for name in set(table.column_names) & tallies.keys():
                    _look(table.column(name), tallies[name], name, piece.file)
                progress.advance(table.num_rows)
    return _decide(candidates, excluded, tallies, total, max_bin)


def _look(column: pa.ChunkedArray, tally: _Tally, name: str, file: Path) -> None:
    tally.seen += len(column)
    tally.missing += column.null_count
    if column.null_count:
        column = pc.drop_null(column)
    if pa.types.is_null(column.type) or not len(column):
        return
    values = as_numpy(column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        nan = np.isnan(values)
        if nan.any():
            tally.missing += int(nan.sum())
            values = values[~nan]
        if not len(values):
            return
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError(
            f"column {name} holds infinite values (or numbers beyond float32)",
            expected="finite numbers, or null / NaN for missing",
            where=str(file.name),
            next_step=f"replace them in the data set, or --exclude-features {name}",
        )
    tally.zeros += len(values) - int(np.count_nonzero(values))
    tally.low, tally.high = min(tally.low, low), max(tally.high, high)


def _decide(
    candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn], tallies: dict[str, _Tally], total: int,
    max_bin: int,
) -> FeatureSet:  # fmt: skip
    kept, gone, notes = [], list(excluded), []
    for c in candidates:
        t = tallies[c.name]
        if c.group == "kmer":
            t.zeros += total - t.seen  # an absent k-mer is a count of 0
        else:
            t.missing += total - t.seen
        if t.missing == total:
            gone.append(ExcludedColumn(name=c.name, reason="no value in any row"))
        elif t.low == t.high and t.missing == 0 and t.zeros in (0, total):
            gone.append(ExcludedColumn(name=c.name, reason=f"constant ({t.low:g})"))
        else:
            kept.append(c)
    if not kept:
        raise InputError("every feature column is constant or empty", expected="at least one feature that varies")
    distinct = [_distinct_at_most(c, tallies[c.name]) for c in kept]
    sparse = _choose_zero_as_missing(kept, tallies, total, max(bin_counts(distinct, max_bin)))
    absent = [c for c in kept if c.absent_from]
    if absent:
        notes.append(
            f"{len(absent)} feature(s) are absent from some shards: k-mers count as 0, others as missing "
            f"({', '.join(c.name for c in absent[:8])}{', …' if len(absent) > 8 else ''})"
        )
    if sparse:
        notes.append(f"{len(sparse)} feature(s) are mostly 0: zeros are stored as missing (less memory, faster)")
    densities = _densities(kept, tallies, total, sparse)
    features = tuple(
        Feature(
            name=c.name,
            dtype=c.dtype,
            missing="zero-as-missing" if c.name in sparse else "native",
            if_absent="zero" if c.group == "kmer" else "null",
            group=c.group,
        )
        for c in kept
    )
    return FeatureSet(
        features=features,
        excluded=tuple(sorted(gone, key=lambda e: e.name)),
        densities=densities,
        distinct_at_most=tuple(distinct),
        has_missing=min(densities) < 1,
        notes=tuple(notes),
    )


def _choose_zero_as_missing(kept: Sequence[Candidate], tallies: dict[str, _Tally], total: int, bins: int) -> set[str]:
    """The non-negative, mostly zero features whose zeros are better left out of the matrix; possibly none.

    A tree loses nothing by it: zero is the end of their range, and a split sends missing values either way.
    """
    mostly_zero = {
        c.name
        for c in kept
        if (t := tallies[c.name]).low >= 0 and t.missing == 0 and t.zeros >= _SPARSE_FEATURE * total
    }
    plain = _densities(kept, tallies, total, set())
    sparse = _densities(kept, tallies, total, mostly_zero)
    cost_plain = cell_bytes(plain, has_missing=min(plain) < 1, most_bins=bins)
    cost_sparse = cell_bytes(sparse, has_missing=min(sparse) < 1, most_bins=bins)
    faster = sum(sparse) <= (1 - _SPARSE_MATRIX) * len(kept)
    if cost_sparse < cost_plain or (faster and cost_sparse <= _PRICE_OF_SPEED * cost_plain):
        return mostly_zero
    return set()


def _densities(
    kept: Sequence[Candidate], tallies: dict[str, _Tally], total: int, zero_as_missing: set[str]
) -> tuple[float, ...]:
    """The part of each feature's cells that the matrix would store."""
    gaps = (tallies[c.name].missing + (tallies[c.name].zeros if c.name in zero_as_missing else 0) for c in kept)
    return tuple(1 - gap / total for gap in gaps)


def _distinct_at_most(candidate: Candidate, tally: _Tally) -> int | None:
    if candidate.dtype == "float32":
        return None
    low = min(tally.low, 0.0) if tally.zeros else tally.low
    return int(tally.high - low + 1)
