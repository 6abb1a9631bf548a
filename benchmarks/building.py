"""Rows a second of building a table with 3-mers and 5-mers on one core: choosing rows, features, zstd parquet.

Genes are generated (lengths spread as those of human genes, a tenth of 1 % of the positions scored above 0.01), so that
reading a genome and running a base model are not part of it. Nothing is warmed up but the imports.

    python benchmarks/building.py [GENES] [LONGEST]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.building.features import FeatureSpec, feature_batch, feature_flank, feature_schema
from metabatch.building.rows import RowSampling, select_rows, targets

SPEC = FeatureSpec(kmer_sizes=(3, 5))
ROW_GROUP = 16_384
# nt: 7 kb to 100 kb for two thirds of the genes.
MEDIAN, SPREAD = 26_000, 1.35


@dataclass(frozen=True)
class Measured:
    """CPU seconds of each step, on one core."""

    rows: int
    choosing: float
    features: float
    writing: float
    bytes: int

    def __str__(self) -> str:
        steps = (("rows chosen", self.choosing), ("features", self.features), ("parquet", self.writing))
        lines = [f"{name:12s} {seconds:7.2f} s {self.rows / seconds:10,.0f} rows/s" for name, seconds in steps]
        total = self.choosing + self.features + self.writing
        lines.append(f"{'together':12s} {total:7.2f} s {self.rows / total:10,.0f} rows/s")
        return "\n".join([*lines, f"{self.rows:,} rows of {self.bytes / self.rows:.0f} bytes in the file"])


def gene(length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nucleotides with flanks, scores and labels (a site in 6,400 nt, as on the demo) of a gene."""
    codes = rng.choice(4, length + 2 * feature_flank(SPEC), p=(0.3, 0.2, 0.2, 0.3)).astype(np.uint8)
    high = rng.random((length, 2), np.float32) ** 24 / 2
    scores = np.column_stack([1 - high.sum(axis=1), high])
    labels = (rng.random(length) < 1 / 6400).astype(np.uint8)
    return codes, scores, labels


def measure(genes: int, longest: int, file: Path, seed: int = 0) -> Measured:
    """Build a table of `genes` genes of at most `longest` nt and write it to `file`."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), SPREAD, genes)), 500, longest).astype(np.int64)
    asked = targets(RowSampling(), lengths)
    rows, choosing, features, writing = 0, 0.0, 0.0, 0.0
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(file, feature_schema(SPEC), compression="zstd") as writer:
        for number, (length, target) in enumerate(zip(lengths.tolist(), asked.tolist(), strict=True)):
            codes, scores, labels = gene(length, rng)
            start = time.process_time()
            index, _ = select_rows(RowSampling(), f"G{number}", labels, scores, target, seed)
            chosen = time.process_time()
            waiting.append(feature_batch(SPEC, codes, scores, index))
            made = time.process_time()
            rows += len(index)
            if number == genes - 1 or sum(len(batch) for batch in waiting) >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting).combine_chunks(), row_group_size=2 * ROW_GROUP)
                waiting = []
            choosing += chosen - start
            features += made - chosen
            writing += time.process_time() - made
    return Measured(rows, choosing, features, writing, file.stat().st_size)


def main() -> None:
    genes, longest = (int(word) for word in (*sys.argv[1:], "300", "2300000")[:2])
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as place:
        print(measure(genes, longest, Path(place) / "table.parquet"))


if __name__ == "__main__":
    main()
