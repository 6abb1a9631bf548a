"""From a genome to predictions on all positions, at natural prevalence: genes of a contig by models of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from runs import ROOT, run_measured

from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval

# FASTA, GTF and base scores of 37 human genes; see its SOURCE.md.
WINDOWS = Path(os.environ.get("METABATCH_WINDOWS", ROOT.parent / "shared/data/hg19-windows"))
_CONTIGS = ("chr3_42M", "chr4_103M", "chr5_124M")
_RESAMPLES = 500
_BASES = {"scores of OpenSpliceAI (80 nt), from a table": False, "position weights, from FASTA and GTF alone": True}


def genome_lines(place: Path) -> Iterator[str]:
    """A table: AP of base and meta-model over all positions, by models that saw nothing of the contig."""
    yield (
        "hg19-windows: 37 genes, 2,586,653 positions; 300 trees a class, 5 folds; every contig is predicted by a model "
        f"of the other two. 95 % intervals by resampling loci, {_RESAMPLES} times.\n"
    )
    yield "| base model | class | sites | base AP | meta AP | difference |"
    yield "|---|---|---|---|---|---|"
    for name, fitted in _BASES.items():
        scored = pl.concat([_predicted(place / f"{fitted}-{contig}", contig, fitted=fitted) for contig in _CONTIGS])
        for site in ("donor", "acceptor"):
            yield f"| {name} | {site} | {_compared(scored, site)} |"


def _predicted(place: Path, contig: str, *, fitted: bool) -> pl.DataFrame:
    """locus_id, label and scores of all positions of a contig's genes."""
    place.mkdir()
    data, run, out = place / "data", place / "run", place / "out"
    genome, annotation = WINDOWS / "genome.fa.gz", WINDOWS / "annotation.gtf.gz"
    base: list[str | Path] = ["--base-scores", WINDOWS / "base_scores.parquet"]
    own = ["--base-model", "pwm", "--holdout-chrom", contig] if fitted else base
    run_measured("build-dataset", *own, genome, annotation, data)
    aside = [] if fitted else ["--holdout-chrom", contig]
    run_measured("run-all", "--analyses", "none", "--n-estimators", "300", *aside, data, run)
    manifest = pl.read_csv(data / "gene_manifest.csv")
    genes = place / "genes.txt"
    genes.write_text("\n".join(manifest.filter(pl.col("chrom") == contig)["gene_id"]))
    run_measured(
        "predict",
        "--genome",
        genome,
        "--annotation",
        annotation,
        "--gene-ids",
        genes,
        *([] if fitted else base),
        run,
        out,
    )
    sites = pl.read_parquet(data / "positions-*.parquet", columns=["gene_id", "position", "splice_type"])
    sites = sites.filter(pl.col("splice_type") != "neither")
    scored = pl.read_parquet(out / "part-*.parquet").join(sites, on=["gene_id", "position"], how="left")
    return scored.select("locus_id", "splice_type", "^(donor|acceptor)_(score|meta)$")


def _compared(scored: pl.DataFrame, site: str) -> str:
    positive = (scored["splice_type"] == site).fill_null(value=False).to_numpy()
    loci, code = np.unique(scored["locus_id"].to_numpy(), return_inverse=True)
    rankings = {n: Ranking.of(scored[f"{site}_{n}"].to_numpy(), positive) for n in ("score", "meta")}
    ones = np.ones(len(positive))
    draws = group_multiplicities(len(loci), _RESAMPLES, 42)
    sampled = bootstrap_ap(rankings, ones, code, draws)
    base, meta = (rankings[n].average_precision(ones) for n in ("score", "meta"))
    found = interval(sampled["meta"] - sampled["score"])
    low, high = found if found is not None else (float("nan"), float("nan"))
    return f"{positive.sum()} | {base:.3f} | {meta:.3f} | {meta - base:+.3f} ({low:+.3f} to {high:+.3f})"
