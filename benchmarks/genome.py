"""From a genome to predictions on all positions, at natural prevalence: genes by models of other loci."""

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
_SOURCES = (WINDOWS / "genome.fa.gz", WINDOWS / "annotation.gtf.gz")
_SCORES = ("--base-scores", WINDOWS / "base_scores.parquet")
_FOLDS = 5
_RESAMPLES = 500
_BASES = {"scores of OpenSpliceAI (80 nt), from a table": False, "position weights, from FASTA and GTF alone": True}


def genome_lines(place: Path) -> Iterator[str]:
    """A table: AP of base and meta-model over all positions, each gene by a model that saw nothing of its locus."""
    manifest = _manifest(place / "all")
    yield (
        f"hg19-windows: {manifest.height} genes in {manifest['locus_id'].n_unique()} loci, "
        f"{manifest['length'].sum():,} positions; 300 trees a class. {_FOLDS} folds of loci: data set, position "
        "weights and model are made of four, and predict all positions of the fifth. 95 % intervals by resampling "
        f"loci, {_RESAMPLES} times.\n"
    )
    yield "| base model | class | sites | base AP | meta AP | difference |"
    yield "|---|---|---|---|---|---|"
    for name, fitted in _BASES.items():
        scored = pl.concat([_predicted(place / f"{fitted}-{f}", manifest, f, fitted=fitted) for f in range(_FOLDS)])
        for site in ("donor", "acceptor"):
            yield f"| {name} | {site} | {_compared(scored, site)} |"


def _manifest(place: Path) -> pl.DataFrame:
    """gene_manifest.csv of all genes, with the fold of each; loci, those of most sites first, go where fewest are."""
    run_measured("build-dataset", *_SCORES, *_SOURCES, place)
    manifest = pl.read_csv(place / "gene_manifest.csv")
    loci = manifest.group_by("locus_id").agg(pl.col("sites").sum()).sort("sites", "locus_id", descending=[True, False])
    held, fold = [0] * _FOLDS, {}
    for locus, sites in loci.iter_rows():
        fold[locus] = held.index(min(held))
        held[fold[locus]] += sites
    return manifest.with_columns(fold=pl.col("locus_id").replace_strict(fold))


def _predicted(place: Path, manifest: pl.DataFrame, fold: int, *, fitted: bool) -> pl.DataFrame:
    """locus_id, label and scores of all positions of a fold's genes."""
    place.mkdir()
    data, run, out = place / "data", place / "run", place / "out"
    lists = {}
    for name, own in (("training", pl.col("fold") != fold), ("held-out", pl.col("fold") == fold)):
        lists[name] = place / f"{name}.txt"
        lists[name].write_text("\n".join(manifest.filter(own)["gene_id"]))
    # Position weights leave one locus at least out, which `plan` then holds out.
    base, aside = (
        (("--base-model", "pwm", "--holdout-fraction", "0.05"), ())
        if fitted
        else (_SCORES, ("--holdout-fraction", "0"))
    )
    run_measured("build-dataset", *base, "--gene-ids", lists["training"], *_SOURCES, data)
    run_measured("run-all", "--analyses", "none", "--n-estimators", "300", *aside, data, run)
    run_measured(
        "predict", "--genome", _SOURCES[0], "--annotation", _SOURCES[1], "--gene-ids", lists["held-out"],
        *([] if fitted else _SCORES), run, out,
    )  # fmt: skip
    sites = pl.read_parquet(place.parent / "all/positions-*.parquet", columns=["gene_id", "position", "splice_type"])
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
