"""What stands beside the shards of a built data set: dataset.json and gene_manifest.csv."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import polars as pl

from metabatch.building.base import BaseDescription, Source
from metabatch.building.features import FeatureSpec
from metabatch.building.genes import CLASSES, Gene
from metabatch.building.request import BuildRequest
from metabatch.errors import InputError
from metabatch.rundir.layout import FORMAT_VERSION
from metabatch.rundir.manifests import FileRecord


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is needed to compute the same columns for other positions; it goes with every model.

    features_version : `FEATURES_VERSION` of the code that computed them.
    """

    features_version: int
    features: FeatureSpec
    base: BaseDescription


class BuiltDataset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """dataset.json.

    holdout : how the genes were set aside that the base model was not fitted on; empty where none was fitted.
    shards : name -> bytes and sha256. warnings : what was said of the sources.
    """

    format_version: int = FORMAT_VERSION
    metabatch_version: str
    recipe: Recipe
    request: BuildRequest
    genome: Source
    annotation: Source
    holdout: str
    genes: int
    rows: int
    shards: dict[str, FileRecord]
    warnings: tuple[str, ...] = ()


def gene_manifest(
    genes: Sequence[Gene], shard_of: dict[str, str], files: Sequence[Path], held: Collection[str]
) -> pl.DataFrame:
    """A line a gene; rows and sites are counted in the shards themselves.

    Raises
    ------
    InputError
        A gene without rows, or with other sites than the annotation has: a damaged shard.
    """
    counted = pl.concat(
        pl.scan_parquet(file).group_by("gene_id").agg(
            pl.len().alias("rows"), *((pl.col("splice_type") == c).sum().alias(c) for c in CLASSES[1:])
        ).collect()
        for file in files
    )  # fmt: skip
    table = pl.DataFrame(
        {
            "gene_id": [g.gene_id for g in genes], "name": [g.name for g in genes], "type": [g.type for g in genes],
            "chrom": [g.chrom for g in genes], "strand": [g.strand for g in genes], "start": [g.start for g in genes],
            "end": [g.end for g in genes], "length": [g.length for g in genes],
            "locus_id": [g.locus_id for g in genes],
            "sites": [len(g.donors) + len(g.acceptors) for g in genes],
        }
    )  # fmt: skip
    found = table.join(counted, on="gene_id", how="left", maintain_order="left")
    wrong = found.filter(pl.col("rows").is_null() | (pl.col("donor") + pl.col("acceptor") != pl.col("sites")))
    if wrong.height or counted.height != table.height:
        raise InputError(
            f"{wrong.height} gene(s) do not stand in the shards with all their sites, e.g. "
            f"{wrong['gene_id'][0] if wrong.height else counted['gene_id'][0]}",
            expected="every gene in one shard", next_step="the same command with --force",
        )  # fmt: skip
    found = found.with_columns(shard=pl.Series([shard_of[g.gene_id] for g in genes], dtype=pl.String))
    if not held:
        return found
    return found.with_columns(split=pl.Series(["holdout" if g.gene_id in held else "train" for g in genes]))
