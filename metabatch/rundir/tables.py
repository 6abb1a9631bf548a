"""Reading the tables that `plan` wrote, and writing tables."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import FeatureSet, Plan, load
from metabatch.rundir.publish import write_bytes


def read_features(run: RunDir) -> FeatureSet:
    return load(run.features, FeatureSet)


def read_genes(run: RunDir) -> pl.DataFrame:
    """genes.parquet: gene_id, rows, n_<class>…, weight, split_group?, chrom, split (train | holdout)."""
    return pl.read_parquet(run.genes)


def read_segments(run: RunDir) -> pl.DataFrame:
    """segments.parquet: gene_id, shard (index into plan.dataset.shards), row_group, rows.

    Of every gene in the row groups that hold a gene of the plan.
    """
    return pl.read_parquet(run.segments)


def read_leakage(run: RunDir) -> pl.DataFrame:
    """leakage.parquet: a row a feature looked at and class; what it tells alone, flagged, reason."""
    return pl.read_parquet(run.leakage)


def instance_genes(run: RunDir, index: int) -> list[str]:
    """The genes an instance trains on, core and overlap, sorted."""
    return pl.read_parquet(run.assignments).filter(pl.col("instance") == index)["gene_id"].sort().to_list()


def read_cuts(run: RunDir) -> pl.DataFrame:
    """cuts.parquet: feature, values (the smallest value of each of its bins), in matrix order."""
    return pl.read_parquet(run.cuts)


def home_instances(run: RunDir, plan: Plan) -> pl.DataFrame:
    """gene_id, instance: the one whose out-of-fold scores stand for a gene.

    Where it is core; of a plan without that instance (`consolidate --allow-missing`), the first that trained on it.
    """
    table = pl.read_parquet(run.assignments).filter(pl.col("instance").is_in([p.index for p in plan.instances]))
    first = table.sort(pl.col("role") != "core", "instance").unique("gene_id", keep="first", maintain_order=True)
    return first.select("gene_id", "instance").sort("gene_id")


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """As parquet; on a full disk an OSError with its number, where polars' own error is a ComputeError without one."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_bytes(path, buffer.getvalue())
