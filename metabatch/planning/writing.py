"""Writing a decided plan: its tables first, plan.json last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from metabatch.data.cuts import cut_table
from metabatch.data.index import class_column
from metabatch.errors import OwnedError
from metabatch.planning.allocation import Allocation
from metabatch.planning.existing import discard_plan
from metabatch.rundir.fingerprint import plan_fingerprint, plan_seal
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Columns, FeatureSet, Plan, save
from metabatch.rundir.publish import attempt_folder, publish_files, sha256_file

_TABLES = ("genes.parquet", "assignments.parquet", "segments.parquet", "features.json", "cuts.parquet")
_LEAKAGE = "leakage.parquet"
_SOFT_LABELS = "soft_labels.parquet"


@dataclass(frozen=True)
class Decided:
    """What the tables of a plan are made from.

    genes : as in `metabatch.data.index.GeneIndex`; held : bool, which of them are the holdout; training : the others.
    segments : of all genes of the data set.
    write_soft_labels : of a student, writes them at a path.
    """

    genes: pl.DataFrame
    held: pl.Series
    training: pl.DataFrame
    segments: pl.DataFrame
    allocation: Allocation
    features: FeatureSet
    cuts: Sequence[np.ndarray]
    leakage: pl.DataFrame | None
    write_soft_labels: Callable[[Path], None] | None = None


def write_plan(run: RunDir, plan: Plan, decided: Decided, *, force: bool) -> Plan:
    """Write the run directory; the plan with its fingerprint, seal and checksums.

    Raises
    ------
    OwnedError
        Another process planned here meanwhile.
    """
    genes = decided.genes
    with hold_folder(run.root), attempt_folder(run.root) as folder:
        if run.plan.exists() and not force:
            raise OwnedError(f"another process planned {run.root} meanwhile", next_step="the same command again")
        _gene_table(genes, decided.held, plan.columns).write_parquet(folder / "genes.parquet")
        _assignment_table(decided.training, decided.allocation).write_parquet(folder / "assignments.parquet")
        # Of a sample too, every gene of its row groups: who reads must know that others lie between.
        groups = decided.segments.filter(pl.col("gene_id").is_in(genes["gene_id"].implode()))
        segments = decided.segments.join(groups, on=["shard", "row_group"], how="semi", maintain_order="left")
        segments.write_parquet(folder / "segments.parquet")
        save(folder / "features.json", decided.features)
        names = [f.name for f in decided.features.features]
        cut_table(names, decided.cuts).write_parquet(folder / "cuts.parquet")
        if decided.leakage is not None:
            decided.leakage.write_parquet(folder / _LEAKAGE)
        if decided.write_soft_labels is not None:
            decided.write_soft_labels(folder / _SOFT_LABELS)
        tables = [name for name in (*_TABLES, _LEAKAGE, _SOFT_LABELS) if (folder / name).exists()]
        plan = msgspec.structs.replace(plan, tables={name: sha256_file(folder / name) for name in tables})
        plan = msgspec.structs.replace(plan, fingerprint=plan_fingerprint(plan))
        plan = msgspec.structs.replace(plan, seal=plan_seal(plan))
        if force:
            discard_plan(run)
        publish_files(folder, run.root)
        save(run.plan, plan)
    return plan


def _gene_table(genes: pl.DataFrame, held: pl.Series, columns: Columns) -> pl.DataFrame:
    genes = genes.drop("chroms")
    counts = {class_column(i): f"n_{name}" for i, name in enumerate(columns.classes)}
    part = pl.when(held).then(pl.lit("holdout")).otherwise(pl.lit("train")).alias("split")
    table = genes.rename(counts).rename({"split": "split_group"}).with_columns(part)
    return table if columns.split else table.drop("split_group")


def _assignment_table(training: pl.DataFrame, allocation: Allocation) -> pl.DataFrame:
    names = training["gene_id"]
    parts = []
    for index, pair in enumerate(zip(allocation.core, allocation.overlap, strict=True)):
        for role, members in zip(("core", "overlap"), pair, strict=True):
            parts.append(
                pl.DataFrame({"instance": index, "gene_id": names[members.tolist()], "role": role}).cast(
                    {"instance": pl.Int32}
                )
            )
    return pl.concat(parts).sort("instance", "gene_id")
