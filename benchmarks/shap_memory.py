"""What SHAP adds to the memory of a process that reads rows again, and what it takes.

    PYTHONPATH=. python benchmarks/shap_memory.py [--rows N] [--trees N] [--threads N]

Writes a table of 200,000 rows x 1,167 features, trains three small boosters on a part of it, and explains all rows with
all classes in the same process. Exit status 1 when that adds more than 300 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from metabatch.analysis.bounds import CHUNK_ROWS, shap_bytes
from metabatch.analysis.sampling import MatrixRows, draw_rows
from metabatch.analysis.shap_sums import explain
from metabatch.data.batches import RowCount, whole_files
from metabatch.data.matrices import as_matrix
from metabatch.data.preprocess import Preprocessor
from metabatch.resources.usage import anonymous_bytes, peak_rss, reset_peak_rss, resident_bytes, trim_memory
from metabatch.rundir.manifests import Columns, Feature
from metabatch.training.instance_rows import matrix_rows
from metabatch.training.matrix import read_rows

ALLOWED = 300_000_000
FEATURES, FLOATS, ROWS_PER_GENE, ROW_GROUP = 1_167, 67, 1_000, 16_384
CLASSES = ("neither", "donor", "acceptor")
COLUMNS = Columns(
    group="gene_id", label="splice_type", classes=CLASSES, scores={}, split=None, weight=None, ids=(), chrom=None,
    row_key=(), carried={},
)  # fmt: skip


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--trees", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    features = _features()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part-0.parquet"
        genes = _write(file, features, asked.rows)
        added, sampled, seconds, facts = _explain(file, genes, features, asked.trees, asked.threads)
    width = sum(np.dtype(f.dtype).itemsize for f in features)
    passes = facts["rows"] / 1000 * asked.trees * len(CLASSES) / 100
    print(f"{facts['rows']:,} rows x {FEATURES:,} features x {len(CLASSES)} classes, {asked.trees} trees a class")
    print(f"added peak: {added / 1e6:.0f} MB (anonymous: {sampled / 1e6:.0f} MB); allowed {ALLOWED / 1e6:.0f} MB")
    print(f"stated bound, without reading: {shap_bytes(FEATURES, len(CLASSES), width) / 1e6:.0f} MB")
    print(f"{seconds:.0f} s on {asked.threads} thread(s): {seconds / passes:.2f} s per 1,000 rows and 100 trees")
    print(f"sums equal the margins to {max(facts['additivity_max_error'].values()):.1e} log-odds")
    return int(added > ALLOWED)


def _features() -> list[Feature]:
    counts = [
        Feature(name=f"count{j}", dtype="uint8", missing="native", if_absent="zero", group="kmer")
        for j in range(FEATURES - FLOATS)
    ]
    floats = [
        Feature(name=f"x{j}", dtype="float32", missing="native", if_absent="null", group="context")
        for j in range(FLOATS)
    ]
    return counts + floats


def _write(file: Path, features: list[Feature], rows: int) -> list[str]:
    """The table, a row group at a time; one float in ten is missing. Returns the genes, sorted."""
    rng = np.random.default_rng(0)
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, ROW_GROUP):
        n = min(ROW_GROUP, rows - start)
        row = np.arange(start, start + n)
        label = np.where(row % 100 == 0, 1, np.where(row % 100 == 50, 2, 0))
        columns: dict[str, pa.Array] = {
            "gene_id": pa.array([f"G{g:06d}" for g in row // ROWS_PER_GENE]),
            "splice_type": pa.array(np.array(CLASSES)[label]),
        }
        for number, feature in enumerate(features):
            if feature.dtype == "uint8":
                values = rng.integers(0, 6, n, dtype=np.uint8) + (label == number % 40) * 2
                columns[feature.name] = pa.array(values.astype(np.uint8))
                continue
            real = rng.random(n, dtype=np.float32) + label / 4
            columns[feature.name] = pa.array(real.astype(np.float32), mask=rng.random(n) < 0.1)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is not None:
        writer.close()
    return sorted(pl.read_parquet(file, columns=["gene_id"])["gene_id"].unique().to_list())


def _explain(
    file: Path, genes: list[str], features: list[Feature], trees: int, threads: int
) -> tuple[int, int, float, dict[str, Any]]:
    """Added VmHWM and added anonymous memory in bytes, seconds, facts."""
    pieces, prepare = whole_files([file]), Preprocessor(features)
    rows = read_rows(pieces, genes, COLUMNS, RowCount(), 16_384)
    chosen, times = draw_rows(rows.label, len(rows), len(CLASSES), seed=0)
    unit = rows.gene.astype(np.int64)

    def source(most: int | None = None) -> Iterator[MatrixRows]:
        some = slice(0, most)
        return matrix_rows(
            pieces, rows, chosen[some], times[some], unit, prepare, COLUMNS, chunk=CHUNK_ROWS, count=RowCount(),
            where="benchmark",
        )  # fmt: skip

    boosters = _train(list(source(10 * CHUNK_ROWS)), prepare, trees, threads)
    trim_memory()
    reset_peak_rss()
    before, anonymous = resident_bytes(), anonymous_bytes()
    most, stop = [anonymous], threading.Event()

    def sample() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], anonymous_bytes())

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    begun = time.monotonic()
    found = explain(
        boosters, source(), features, prepare.matrix_names, CLASSES, on="benchmark", seed=0,
        threads=threads, check=lambda: None,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    stop.set()
    watcher.join()
    return peak_rss() - before, most[0] - anonymous, seconds, found.facts


def _train(chunks: list[MatrixRows], prepare: Preprocessor, trees: int, threads: int) -> dict[str, xgb.Booster]:
    values = np.concatenate([as_matrix(c.table) for c in chunks])
    label = np.concatenate([c.label for c in chunks])
    matrix = xgb.DMatrix(values, feature_names=prepare.matrix_names, nthread=threads)
    boosters = {}
    for code, name in enumerate(CLASSES):
        matrix.set_info(label=(label == code).astype(np.float32))
        params = {"objective": "binary:logistic", "max_depth": 6, "nthread": threads, "min_child_weight": 0.1}
        boosters[name] = xgb.train(params, matrix, trees)
        boosters[name].reset()
    return boosters


if __name__ == "__main__":
    sys.exit(main())
