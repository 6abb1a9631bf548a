"""Per-feature statistics in one streaming pass: missing, zero, infinite, smallest, largest, and the values to cut at.

Parquet footers count nulls only, so a float NaN or an infinity is found by looking (FIELD_NOTES).
From these the plan chooses the missing-value policy, which decides more memory than any splitting, and the cuts
of every feature (see `metabatch.data.cuts`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.data.batches import Piece, Reader, RowCount, ahead, as_numpy, as_text
from metabatch.data.cuts import sketch_cuts
from metabatch.data.missing import Seen, Wish, choose_policies
from metabatch.data.roles import Candidate
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.rundir.manifests import ExcludedColumn, Feature, FeatureSet, MissingPolicy

# Integers within a span of this many values are counted exactly.
_MOST_VALUES = 4096
# The sample for all other features: cells in all, and most rows (the rank of a cut is then known to 0.1 %).
_SAMPLE_CELLS, _SAMPLE_ROWS = 32_000_000, 262_144


@dataclass
class _Tally:
    seen: int = 0
    missing: int = 0
    zeros: int = 0
    low: float = np.inf
    high: float = -np.inf
    first: int = 0
    counts: np.ndarray | None = None  # of first, first + 1, …; None: too many values, or no integers
    sample: list[np.ndarray] = field(default_factory=list)

    def count(self, values: np.ndarray) -> None:
        """Count whole numbers, as long as they span few values."""
        if self.counts is None:
            return
        low, high = int(values.min()), int(values.max())
        old_low, old_high = (self.first, self.first + len(self.counts) - 1) if len(self.counts) else (low, high)
        new_low, new_high = min(low, old_low), max(high, old_high)
        if new_high - new_low >= _MOST_VALUES:
            self.counts = None
            return
        if len(self.counts) != new_high - new_low + 1:
            grown = np.zeros(new_high - new_low + 1, dtype=np.int64)
            start = old_low - new_low
            grown[start : start + len(self.counts)] = self.counts
            self.first, self.counts = new_low, grown
        here = np.bincount(values.astype(np.int64) - new_low if new_low else values, minlength=len(self.counts))
        self.counts += here

    def values(self) -> np.ndarray | None:
        """The different values, ascending, when they were counted."""
        return None if self.counts is None else self.first + np.flatnonzero(self.counts)


def measure_features(
    pieces: Sequence[Piece], rows: int, candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn],
    group_column: str, training: Collection[str], count: RowCount, max_bin: int, threads: int,
    wish: Wish,
) -> tuple[FeatureSet, list[np.ndarray], list[str]]:  # fmt: skip
    """Look at every cell of the candidates in `pieces`; decide the preprocessing and the cuts of each feature.

    Parameters
    ----------
    rows : int
        Rows of the genes in `pieces`.
    training : collection of str
        Genes that are not held out: only they give the sample from which features of many values are cut (those of
        8 bits are counted in all rows).
    count : RowCount
        Receives the rows read and asked for.
    wish : Wish
        What may become of missing cells and zeros.

    Returns
    -------
    features : FeatureSet
    cuts : list of ndarray
        Per feature, in matrix order; see `metabatch.data.cuts.sketch_cuts`.
    notes : list of str
        For people: what became of missing cells, and columns that some shards lack.

    Raises
    ------
    InputError
        A column with infinite values, naming it and the shard.
    """
    tallies = {c.name: _Tally(counts=None if c.dtype == "float32" else np.zeros(0, np.int64)) for c in candidates}
    sampled = [c.name for c in candidates if c.dtype not in ("uint8", "int8")]
    stride = max(1, -(-rows // min(_SAMPLE_ROWS, max(1, _SAMPLE_CELLS // max(1, len(sampled))))))
    genes = pa.array(sorted(training), pa.string())
    total = 0
    names = [c.name for c in candidates]
    with Progress("feature scan", rows, "rows") as progress:
        tables = ((p.file, table) for p in pieces for table in Reader([p], names, group_column, count=count))
        for file, table in ahead(tables):
            columns = set(table.column_names)
            for name in columns & tallies.keys():
                _look(table.column(name), tallies[name], name, file)
            picked = pa.array(np.arange(-total % stride, table.num_rows, stride))
            present = [c for c in sampled if c in columns]
            _sample(table.select([*present, group_column]).take(picked), present, group_column, genes, tallies)
            total += table.num_rows
            progress.advance(table.num_rows)
    return _decide(candidates, excluded, tallies, total, max_bin, threads, wish)


def _look(column: pa.ChunkedArray, tally: _Tally, name: str, file: Path) -> None:
    tally.seen += len(column)
    tally.missing += column.null_count
    values = _numbers(column)
    if values.dtype.kind == "f":
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
    if values.dtype.kind in "ui":
        tally.count(values)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The values that are there, floats as float32."""
    if column.null_count:
        column = pc.drop_null(column)
    if pa.types.is_null(column.type) or not len(column):
        return np.empty(0, dtype=np.float32)
    values = as_numpy(column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what becomes infinite is reported
            values = values.astype(np.float32, copy=False)
    return values


def _sample(
    rows: pa.Table, names: Sequence[str], group_column: str, genes: pa.Array, tallies: dict[str, _Tally]
) -> None:
    mine = rows.filter(pc.is_in(as_text(rows.column(group_column)), genes))
    for name in names:
        values = _numbers(mine.column(name)).astype(np.float32, copy=False)
        tallies[name].sample.append(values[~np.isnan(values)])


def _decide(
    candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn], tallies: dict[str, _Tally], total: int,
    max_bin: int, threads: int, wish: Wish,
) -> tuple[FeatureSet, list[np.ndarray], list[str]]:  # fmt: skip
    kept, gone, notes = [], list(excluded), list[str]()
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
    most = max(_values_at_most(tallies[c.name], max_bin) for c in kept)
    chosen = choose_policies([_seen(tallies[c.name], total) for c in kept], most, wish)
    notes.extend(chosen.notes)
    absent = [c for c in kept if c.absent_from]
    if absent:
        notes.append(
            f"{len(absent)} feature(s) are absent from some shards: k-mers count as 0, others as missing "
            f"({', '.join(c.name for c in absent[:8])}{', …' if len(absent) > 8 else ''})"
        )
    policies = list(zip(kept, chosen.policies, chosen.sentinels, strict=True))
    cuts = _cuts(policies, tallies, max_bin, threads)
    features = tuple(
        Feature(
            name=c.name,
            dtype="float32" if policy == "sentinel" else c.dtype,
            missing=policy,
            if_absent="zero" if c.group == "kmer" else "null",
            group=c.group,
            sentinel=sentinel,
        )
        for c, policy, sentinel in policies
    )
    return (
        FeatureSet(
            features=features,
            excluded=tuple(sorted(gone, key=lambda e: e.name)),
            densities=chosen.densities,
            bins=tuple(len(c) for c in cuts),
            has_missing=min(chosen.densities) < 1,
        ),
        cuts,
        notes,
    )


def _values_at_most(tally: _Tally, max_bin: int) -> int:
    values = tally.values()
    return max_bin if values is None else min(max_bin, len(values) + 1)


def _seen(tally: _Tally, total: int) -> Seen:
    return Seen(tally.missing / total, tally.zeros / total, tally.low)


def _cuts(
    kept: Sequence[tuple[Candidate, MissingPolicy, float | None]], tallies: dict[str, _Tally], max_bin: int,
    threads: int,
) -> list[np.ndarray]:  # fmt: skip
    """A bin for every value of integers that have no more than `max_bin`; the others by sketch; one for a sentinel."""
    cuts: dict[str, np.ndarray] = {}
    samples: dict[int, dict[str, np.ndarray]] = {}
    for c, policy, sentinel in kept:
        tally = tallies[c.name]
        values, room = tally.values(), max(2, max_bin - (sentinel is not None))
        zero = [0] if tally.zeros else []  # also where a shard lacks the k-mer
        if values is not None and len(known := np.union1d(values, zero)) <= room:
            place, found = cuts, known.astype(np.float32)
        elif values is not None and tally.counts is not None and not tally.sample:  # 8 bits: counted, not sampled
            # As often as they occur, each at least once.
            times = np.maximum(1, tally.counts[tally.counts > 0] * _SAMPLE_ROWS // tally.counts.sum())
            place, found = samples.setdefault(room, {}), np.repeat(values, times).astype(np.float32)
        else:
            # Values in held-out genes only, or too rare for the sample: the ends of the range still give a bin.
            found = np.concatenate([*tally.sample, np.array([tally.low, tally.high], np.float32)])
            place = samples.setdefault(room, {})
        place[c.name] = found[found != 0] if policy == "zero-as-missing" else found
    for room, of_name in samples.items():
        cuts |= dict(zip(of_name, sketch_cuts(list(of_name.values()), room, threads), strict=True))
    return [cuts[c.name] if sentinel is None else _with_sentinel(cuts[c.name], sentinel) for c, _, sentinel in kept]


def _with_sentinel(cuts: np.ndarray, sentinel: float) -> np.ndarray:
    """A bin for the sentinel; the next begins half-way: a value a little below all known ones is not missing."""
    return np.concatenate([np.array([sentinel, (sentinel + float(cuts[0])) / 2], np.float32), cuts[1:]])
