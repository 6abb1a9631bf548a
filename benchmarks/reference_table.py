"""Make a table of the reference shape: 9,280 genes, 3.7M rows, 1,167 features, most of them sparse k-mer counts.

    PYTHONPATH=. python benchmarks/reference_table.py OUT [--genes N] [--features N] [--processes N] [--seed N]

Genes have 8 to 17,629 rows (log-normal, 402 on average); a table of fewer genes has the same distribution. k-mer
counts are Poisson with the rate of their k-mer in a window of 120 nt (AT-rich k-mers often, those with CG seldom),
which leaves about 81 % of the cells 0. Donors and acceptors are 0.5 % of the rows each; the base scores, their context
and some k-mers tell something of them. Every gene is drawn from its own seed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REFERENCE_GENES, REFERENCE_FEATURES = 9280, 1167
FEWEST_ROWS, MOST_ROWS = 8, 17_629
MEDIAN_ROWS, SPREAD = 221, 1.1
ROW_GROUP = 16_384
GENES_PER_SHARD = 290
WINDOW = 120
SITE_RATE = 0.005
# Rate of each base, and how much rarer a CG is than its bases say.
BASES, BASE_RATE, CG = "ACGT", {"A": 0.29, "C": 0.21, "G": 0.21, "T": 0.29}, 0.25
# Context columns other than the two scores: windowed scores, entropy, gc content, distances.
CONTEXT = 61


def gene_rows(genes: int, seed: int) -> np.ndarray:
    """Rows of each gene, shape (genes,): log-normal, within the reference's bounds."""
    rng = np.random.default_rng([seed, 1])
    rows = np.exp(rng.normal(np.log(MEDIAN_ROWS), SPREAD, genes))
    return np.clip(rows, FEWEST_ROWS, MOST_ROWS).astype(np.int64)


def kmers(count: int) -> tuple[list[str], np.ndarray]:
    """Names of `count` k-mers (2-mers, 3-mers, 5-mers in this order) and their expected counts in a window."""
    words = ["".join(w) for k in (2, 3, 5, 6) for w in itertools.product(BASES, repeat=k)][:count]
    rates = [WINDOW * np.prod([BASE_RATE[b] for b in w]) * CG ** w.count("CG") for w in words]
    return [f"{len(w)}mer_{w}" for w in words], np.array(rates)


def poisson_table(rates: np.ndarray) -> np.ndarray:
    """Inverse Poisson distribution, shape (k, 4096) of uint8: a uniform 12-bit number -> a count."""
    at = (np.arange(4096) + 0.5) / 4096
    table = np.empty((len(rates), 4096), dtype=np.uint8)
    for row, rate in enumerate(rates):
        steps = np.arange(1, 64)
        pmf = np.concatenate([[0.0], np.cumsum(np.log(steps))])
        cumulative = np.cumsum(np.exp(-rate + np.arange(64) * np.log(rate) - pmf))
        table[row] = np.minimum(np.searchsorted(cumulative, at), 63)
    return table


def shard_table(
    genes: range, rows: np.ndarray, names: list[str], counts: np.ndarray, context: int, seed: int
) -> pa.Table:
    """The rows of `genes`, gene by gene."""
    rng = np.random.default_rng([seed, 2, genes.start])
    n = int(rows.sum())
    gene = np.repeat(np.arange(len(genes)), rows)
    first = np.repeat(np.cumsum(rows) - rows, rows)
    draw = rng.random(n)
    # The first two rows of a gene are sites, so that no gene lacks a class.
    place = np.arange(n) - first
    label = np.where(draw < SITE_RATE, 1, np.where(draw < 2 * SITE_RATE, 2, 0))
    label = np.where(place == 0, 1, np.where(place == 1, 2, label)).astype(np.int8)
    columns: dict[str, pa.Array] = {
        "gene_id": pa.array([f"G{g:05d}" for g in genes]).take(pa.array(gene)),
        "chrom": pa.array([f"chr{1 + g % 22}" for g in genes]).take(pa.array(gene)),
        "position": pa.array(1000 + place * 3),
        "splice_type": pa.array(["neither", "donor", "acceptor"]).take(pa.array(label)),
    }
    hidden = rng.normal(0, 1, n).astype(np.float32)  # what the context knows and the base score does not
    for code, name in ((1, "donor"), (2, "acceptor")):
        logit = rng.normal(-3, 1.5, n) + 4.0 * (label == code) + 0.8 * hidden
        columns[f"{name}_score"] = pa.array((1 / (1 + np.exp(-logit))).astype(np.float32))
    for number in range(context):
        share = np.float32(0.6 if number < 10 else 0.05)
        noise = rng.standard_normal(n, dtype=np.float32)
        columns[f"context_{number}"] = pa.array(share * hidden + noise)
    for number, name in enumerate(names):
        value = counts[number][rng.integers(0, 4096, n, dtype=np.uint16)]
        if number % 97 == 5:  # these k-mers are found at sites
            value = value + ((label > 0) & (rng.random(n) < 0.4)).astype(np.uint8)
        columns[name] = pa.array(value)
    return pa.table(columns)


def write_shard(job: tuple[Path, range, np.ndarray, int, int]) -> int:
    """Write one shard; returns its rows."""
    out, genes, rows, features, seed = job
    context = min(CONTEXT, max(0, features - 2))
    names, rates = kmers(features - 2 - context)
    table = shard_table(genes, rows, names, poisson_table(rates), context, seed)
    pq.write_table(table, out, row_group_size=ROW_GROUP, compression="zstd", compression_level=1)
    return table.num_rows


def make_table(out: Path, genes: int, features: int, processes: int, seed: int) -> int:
    """Write the table as shards of whole genes; returns its rows."""
    out.mkdir(parents=True)
    rows = gene_rows(genes, seed)
    jobs = [
        (out / f"shard-{i:03d}.parquet", range(start, min(start + GENES_PER_SHARD, genes)),
         rows[start : start + GENES_PER_SHARD], features, seed)
        for i, start in enumerate(range(0, genes, GENES_PER_SHARD))
    ]  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.imap_unordered(write_shard, jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--genes", type=int, default=REFERENCE_GENES)
    parser.add_argument("--features", type=int, default=REFERENCE_FEATURES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rows = make_table(given.out, given.genes, given.features, given.processes, given.seed)
    print(f"{given.out}: {given.genes:,} genes, {rows:,} rows, {given.features:,} features")


if __name__ == "__main__":
    main()
