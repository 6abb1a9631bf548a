"""A trial of the real thing on a few thousand real rows, in a process of its own; started by `plan`.

Its argument is a folder with request.json (`Request`), features.json and cuts.parquet; what it writes to stdout is
a `ProbeResult`: what the libraries take, what a cell takes in the matrix, and how long a tree and the building take.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import xgboost as xgb

import metabatch.training.attempt  # noqa: F401 (what an instance loads)
from metabatch.data.batches import Piece, Reader
from metabatch.data.cuts import cuts_of, reference_rows
from metabatch.data.labels import label_codes
from metabatch.data.layout import cell_bytes
from metabatch.data.preprocess import Preprocessor
from metabatch.resources.process import follow_parent
from metabatch.resources.usage import anonymous_bytes, peak_rss, reset_peak_rss, resident_bytes, trim_memory
from metabatch.rundir.manifests import FeatureSet, ProbeResult, load
from metabatch.rundir.probing import Request
from metabatch.training.boosters import booster_params, train_final, train_fold
from metabatch.training.crossval import CrossValidation, calibrate
from metabatch.training.matrix import Batch, Batches, Rows, blank_batches, shape_passes

_BATCH_ROWS = 4_096
_TREES = 3


def main() -> int:
    folder = Path(sys.argv[1])
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=Request)
    follow_parent(request.parent)
    features = load(folder / "features.json", FeatureSet)
    cuts = cuts_of(pl.read_parquet(folder / "cuts.parquet"))
    sys.stdout.write(msgspec.json.encode(_Probe(request, features, cuts).run()).decode())
    return 0


class _Measured(NamedTuple):
    rows: int
    matrix_bytes: int
    build_seconds: float
    tree_seconds: float


class _Probe:
    def __init__(self, request: Request, features: FeatureSet, cuts: list[np.ndarray]) -> None:
        self.request, self.features = request, features
        self.columns = request.columns
        self.prepare = Preprocessor(features.features)
        self.reference = reference_rows(cuts)

    def run(self) -> ProbeResult:
        tables = list(self._tables(self.request.rows[-1]))
        self._rehearse(tables[0].slice(0, 512))
        sizes = [tables[: max(1, self.request.rows[0] // _BATCH_ROWS)], tables]
        for part in reversed(sizes):
            self._measure(part)  # makes the allocator ready: the first matrices take more
        small, large = (self._measure(part) for part in sizes)
        density = self._densities(tables)
        tables.clear()
        sizes.clear()
        gc.collect()
        trim_memory()
        return ProbeResult(
            rows=(small.rows, large.rows), matrix_bytes=(small.matrix_bytes, large.matrix_bytes),
            expected_cell_bytes=cell_bytes(
                density, has_missing=self.features.has_missing, most_bins=max(self.features.bins)
            ),
            resident_bytes=resident_bytes(), anonymous_bytes=anonymous_bytes(), reading_bytes=self._reading(),
            build_seconds=(small.build_seconds, large.build_seconds),
            tree_seconds=(small.tree_seconds, large.tree_seconds),
        )  # fmt: skip

    def _measure(self, tables: list[pa.Table]) -> _Measured:
        """Build the matrix of these rows, then grow trees on it."""
        gc.collect()
        trim_memory()
        before, start = anonymous_bytes(), time.perf_counter()
        matrix = self._matrix(tables)
        seconds = time.perf_counter() - start
        trim_memory()
        grown = anonymous_bytes() - before
        return _Measured(sum(t.num_rows for t in tables), grown, seconds, self._tree_seconds(matrix, tables))

    def _tables(self, rows: int) -> Iterator[pa.Table]:
        """At most `rows` real rows in batches, about as many from each piece."""
        pieces = [Piece(Path(file), group, None) for file, group in self.request.pieces]
        names = [*(f.name for f in self.features.features), self.columns.label]
        share = math.ceil(rows / len(pieces) / _BATCH_ROWS)
        left = rows
        for piece in pieces:
            for table in itertools.islice(self._batches(piece, names), share):
                if left <= 0:
                    return
                yield table.slice(0, left)
                left -= table.num_rows

    def _batches(self, piece: Piece, names: list[str]) -> Iterator[pa.Table]:
        for table in Reader([piece], names, self.columns.group):
            for start in range(0, table.num_rows, _BATCH_ROWS):
                # A copy: a slice would keep its whole row group.
                yield table.take(np.arange(start, min(start + _BATCH_ROWS, table.num_rows)))

    def _matrix(self, tables: list[pa.Table]) -> xgb.QuantileDMatrix:
        missing, names = self.features.has_missing, self.prepare.matrix_names

        def batches() -> Iterator[Batch]:
            return (self.prepare.transform(t, where="probe") for t in tables)

        def blank() -> Iterator[Batch]:
            return blank_batches([t.num_rows for t in tables], names, missing=missing)

        source = Batches(names, batches, blank, shape_passes(external=False, missing=missing))
        threads, bins = self.request.threads, self.request.options.max_bin
        reference = xgb.QuantileDMatrix(self.reference, max_bin=bins, nthread=threads)
        return xgb.QuantileDMatrix(source, max_bin=bins, nthread=threads, missing=np.nan, ref=reference)

    def _reading(self) -> int:
        """Growth of the process while the first rows of the large row group are read."""
        if self.request.large is None or not reset_peak_rss():
            return 0
        file, group = self.request.large
        names = [*(f.name for f in self.features.features), self.columns.label]
        before = resident_bytes()
        for _ in itertools.islice(Reader([Piece(Path(file), group, None)], names, self.columns.group), 2):
            pass
        return peak_rss() - before

    def _densities(self, tables: list[pa.Table]) -> list[float]:
        """Stored part of each feature's cells among these rows."""
        stored = np.zeros(len(self.features.features))
        for table in tables:
            batch = self.prepare.transform(table, where="probe")
            stored += [len(c) - c.null_count - int(np.isnan(pl.Series(pl.from_arrow(c)).to_numpy()).sum())
                       if pa.types.is_floating(c.type) else len(c) - c.null_count for c in batch.columns]  # fmt: skip
        return [float(part) for part in stored / sum(t.num_rows for t in tables)]

    def _rehearse(self, table: pa.Table) -> None:
        """One fold, a calibration and a final model: what an instance loads and touches, on hardly any rows."""
        request, options = self.request, self.request.options
        matrix = self._matrix([table])
        label = label_codes(table, self.columns)
        weight = np.ones(len(label), dtype=np.float32)
        rows = Rows(np.zeros(len(label), np.int32), label, weight, ["probe"], [(len(label),)])
        params = booster_params(options, request.booster, request.threads, 0)
        if options.n_folds:
            held_out = np.arange(len(label)) % 2 == 0
            scores = train_fold(matrix, params, label == 0, weight, held_out, 1, 0, lambda: None).scores
            raw = np.repeat(np.resize(scores, len(label))[:, None], len(self.columns.classes), axis=1)
            cv = CrossValidation(raw=raw, meta=raw, fold=held_out.astype(np.int16))
            calibrate(cv.raw, rows, self.columns.classes, options, cv.fold).apply(raw)
        train_final(matrix, params, label == 0, weight, 1, lambda: None)

    def _tree_seconds(self, matrix: xgb.DMatrix, tables: list[pa.Table]) -> float:
        label = np.concatenate([label_codes(t, self.columns) for t in tables])
        params = booster_params(self.request.options, self.request.booster, self.request.threads, 0)
        train_final(matrix, params, label == 0, None, 1, lambda: None)  # the first is slow
        start = time.perf_counter()
        train_final(matrix, params, label == 0, None, _TREES, lambda: None)
        return (time.perf_counter() - start) / _TREES


if __name__ == "__main__":
    sys.exit(main())
