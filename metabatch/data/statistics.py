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
from metabatch.data.schema import Candidate
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.rundir.manifests import ExcludedColumn, Feature, FeatureSet, MissingPolicy

# A feature takes zero-as-missing when at least this part of it is zero; the matrix goes that way when
# at least this part of all cells would be left out (below, the dense layout costs less memory).
_SPARSE_FEATURE = 0.5
_SPARSE_MATRIX = 0.5


@dataclass
class _Tally:
    seen: int = 0
    missing: int = 0
    zeros: int = 0
    low: float = np.inf
    high: float = -np.inf


def measure_features(
    pieces: Sequence[Piece], rows: int, candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn],
    group_column: str, count: RowCount,
) -> FeatureSet:  # fmt: skip
    """Look at every cell of the candidates in `pieces` and decide the preprocessing.

    `count` receives the rows read and asked for.

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
    return _decide(candidates, excluded, tallies, total)


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
    candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn], tallies: dict[str, _Tally], total: int
) -> FeatureSet:
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
    sparse = {
        c.name
        for c in kept
        if (t := tallies[c.name]).low >= 0 and t.missing == 0 and t.zeros >= _SPARSE_FEATURE * total
    }
    cells = total * len(kept)
    native = sum(tallies[c.name].missing for c in kept)
    zero_cells = sum(tallies[n].zeros for n in sparse)
    use_sparse = bool(sparse) and (native > 0 or native + zero_cells >= _SPARSE_MATRIX * cells)
    policy: dict[str, MissingPolicy] = {
        c.name: "zero-as-missing" if use_sparse and c.name in sparse else "native" for c in kept
    }
    absent = [c for c in kept if c.absent_from]
    if absent:
        notes.append(
            f"{len(absent)} feature(s) are absent from some shards: k-mers count as 0, others as missing "
            f"({', '.join(c.name for c in absent[:8])}{', …' if len(absent) > 8 else ''})"
        )
    if use_sparse:
        notes.append(f"{len(sparse)} feature(s) are mostly 0: zeros are stored as missing (less memory, faster)")
    gaps = native + (zero_cells if use_sparse else 0)
    densities = []
    bins = []
    for c in kept:
        t = tallies[c.name]
        left_out = t.missing + (t.zeros if policy[c.name] == "zero-as-missing" else 0)
        densities.append(round(1 - left_out / total, 6))
        low = min(t.low, 0.0) if t.zeros else t.low
        bins.append(int(t.high - low + 1) if c.dtype != "float32" else None)
    features = tuple(
        Feature(
            name=c.name,
            dtype=c.dtype,
            missing=policy[c.name],
            if_absent="zero" if c.group == "kmer" else "null",
            group=c.group,
        )
        for c in kept
    )
    return FeatureSet(
        features=features,
        excluded=tuple(sorted(gone, key=lambda e: e.name)),
        densities=tuple(densities),
        distinct_at_most=tuple(bins),
        has_missing=gaps > 0,
        notes=tuple(notes),
    )
