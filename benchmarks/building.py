"""Rows a second of building a table with 3-mers and 5-mers on one core: choosing rows, features, zstd parquet.

Genes are generated (lengths spread as those of human genes, a tenth of 1 % of the positions scored above 0.01), so that
reading a genome and running a base model are not part of it. Nothing is warmed up but the imports.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from runs import run_measured

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
    with pq.ParquetWriter(file, feature_schema(SPEC), compression="zstd", use_dictionary=False) as writer:
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


SIZES = (200, 2_000)
_LONGEST = 100_000  # in every genome, so that the largest gene is the same
_GAP = 2_000


def make_genome(folder: Path, genes: int, seed: int = 0) -> tuple[Path, Path]:
    """A FASTA and a GTF file of genes one after the other, 100 on a contig, with introns from GT to AG."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(MEDIAN), SPREAD, genes)), 2_000, _LONGEST).astype(np.int64)
    lengths[0] = _LONGEST
    fasta, gtf = folder / "genome.fa", folder / "annotation.gtf"
    with fasta.open("w") as sequence, gtf.open("w") as lines:
        for contig, part in enumerate(np.array_split(lengths, max(1, genes // 100))):
            letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), int(part.sum()) + _GAP * (len(part) + 1))
            start = _GAP
            for number, length in enumerate(part.tolist()):
                name = f"G{contig:03d}{number:03d}"
                shared = f'gene_id "{name}"; gene_type "protein_coding";'
                lines.write(f"c{contig}\tbench\tgene\t{start + 1}\t{start + length}\t.\t+\t.\t{shared}\n")
                for exon, (first, last) in enumerate(_exons(length)):
                    lines.write(
                        f"c{contig}\tbench\texon\t{start + first + 1}\t{start + last}\t.\t+\t.\t{shared} "
                        f'transcript_id "{name}.1"; exon_number "{exon + 1}";\n'
                    )
                    if exon:
                        letters[start + first - 2 : start + first] = np.frombuffer(b"AG", np.uint8)
                    letters[start + last : start + last + 2] = np.frombuffer(b"GT", np.uint8)
                start += length + _GAP
            sequence.write(f">c{contig}\n")
            text = letters.tobytes().decode()
            sequence.writelines(text[i : i + 60] + "\n" for i in range(0, len(text), 60))
    return fasta, gtf


def _exons(length: int) -> list[tuple[int, int]]:
    """First and last (excluded) position of exons of 150 nt, one in 4,000 nt and two at least."""
    begins = np.linspace(0, length - 150, max(2, length // 4_000)).astype(int)
    return [(int(b), int(b) + 150) for b in begins]


def building_lines(place: Path) -> Iterator[str]:
    """What a data set costs: the whole command on generated genomes, and its steps on one core."""
    yield (
        "`build-dataset --base-model pwm --kmer-sizes 3,5 --workers 1` on generated genomes (median gene "
        f"{MEDIAN:,} nt, the longest {_LONGEST:,}): CPU of the whole command with its start, reading, fitting and "
        "scoring; peak: largest resident memory of a process.\n"
    )
    yield "| genes | positions | rows | columns | CPU s | rows/s | peak |"
    yield "|---|---|---|---|---|---|---|"
    for genes in SIZES:
        fasta, gtf = make_genome(place / f"genome-{genes}", genes)
        out = place / f"built-{genes}"
        words = ("--base-model", "pwm", "--kmer-sizes", "3,5", "--workers", "1")
        found = run_measured("build-dataset", *words, fasta, gtf, out)
        manifest = pl.read_csv(out / "gene_manifest.csv")
        columns = len(pq.read_schema(out / "positions-00000.parquet").names)
        rows, positions = int(manifest["rows"].sum()), int(manifest["length"].sum())
        yield (
            f"| {genes:,} | {positions:,} | {rows:,} | {columns:,} | {found.seconds:.1f} | "
            f"{rows / found.seconds:,.0f} | {found.peak_bytes / 2**20:.0f} MiB |"
        )
    yield "\nOf these, on one core, per step (400 rows a gene, genes up to 2.3 Mnt, scores generated):\n"
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(here)])
    try:
        yield textwrap.indent(str(measure(200, 2_300_000, place / "steps.parquet")), "    ")
    finally:
        os.sched_setaffinity(0, here)
