"""Predictions that no trained row flatters.

Holdout genes are scored by all members. Without a holdout each gene is scored only by members that did
not train on it nor on its split group; where there is none (a single model of all genes), its
out-of-fold scores stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from metabatch.data.batches import Reader, RowCount, as_float32, as_text, carried
from metabatch.data.index import pieces_for
from metabatch.data.shards import shard_path
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan
from metabatch.rundir.tables import read_genes, read_segments


@dataclass(frozen=True)
class Scored:
    """What was scored and how.

    members : per member, the file of its own probabilities (NaN where it may not speak); empty when only
        out-of-fold scores were used.
    """

    how: str
    genes: int
    rows: int
    members: dict[int, Path]
    count: RowCount


def score(run: RunDir, plan: Plan, model: MetaModel, folder: Path, stop: StopFlag) -> Scored:
    """Write predictions.parquet into `folder` (and one scratch file a member), streaming.

    Columns: gene_id, ids, label, weight, `{class}_score` (base), `{class}_meta`.

    Raises
    ------
    InputError
        No holdout and no out-of-fold scores: no honest estimate can be made.
    """
    genes = read_genes(run)
    speakers, how = _speakers(run, plan, genes)
    asked = [g for g, members in speakers.items() if members]
    writer = _Writer(folder, plan, [m.index for m in model.bundle.members] if asked else [])
    count = RowCount()
    total = int(genes.filter(pl.col("gene_id").is_in(list(speakers)))["rows"].sum())
    with Progress("evaluate", total, "rows") as progress:
        try:
            for table in _batches(run, plan, model, asked, count):
                _score_batch(table, plan, model, speakers, writer)
                progress.advance(table.num_rows)
                stop.check()
            for table in _out_of_fold(run, plan, [g for g, members in speakers.items() if not members]):
                writer.write(table, {})
                progress.advance(table.num_rows)
                stop.check()
        finally:
            writer.close()
    if writer.rows != total:
        raise InputError(f"{writer.rows} rows were scored", expected=f"{total} rows of {len(speakers)} genes")
    return Scored(how, len(speakers), writer.rows, writer.member_files, count)


def _speakers(run: RunDir, plan: Plan, genes: pl.DataFrame) -> tuple[dict[str, list[int]], str]:
    """Which members may score which gene."""
    held = genes.filter(pl.col("split") == "holdout")["gene_id"].to_list()
    everyone = [p.index for p in plan.instances]
    if held:
        return dict.fromkeys(held, everyone), f"holdout genes ({plan.holdout.how}), scored by all members"
    if not plan.options.n_folds and len(everyone) == 1:
        raise InputError(
            "there is no holdout and no cross-validation: nothing was kept back to evaluate on",
            expected="holdout genes or out-of-fold scores",
            next_step="plan again with --holdout-fraction above 0, or --n-folds 2 or more",
        )
    unit = "split_group" if plan.columns.split else "gene_id"
    table = pl.read_parquet(run.assignments).join(genes.select("gene_id", pl.col(unit).alias("unit")), on="gene_id")
    trained = table.group_by("unit").agg(pl.col("instance").unique())
    by_unit = dict(zip(trained["unit"], trained["instance"].to_list(), strict=True))
    speakers = {
        gene: [m for m in everyone if m not in set(by_unit[u])]
        for gene, u in genes.select("gene_id", pl.col(unit).alias("unit")).iter_rows()
    }
    alone = sum(not members for members in speakers.values())
    if alone and not plan.options.n_folds:
        raise InputError(
            f"{alone} gene(s) were trained on by every member and there are no out-of-fold scores",
            next_step="plan again with --holdout-fraction above 0, or --n-folds 2 or more",
        )
    if alone == len(speakers):
        return speakers, "all genes, out-of-fold scores (no holdout)"
    rest = f"; {alone} genes by out-of-fold scores" if alone else ""
    return speakers, f"all genes, each by the members that did not train on it (no holdout){rest}"


def _batches(run: RunDir, plan: Plan, model: MetaModel, genes: Sequence[str], count: RowCount) -> Iterator[pa.Table]:
    if not genes:
        return
    columns = plan.columns
    names = [*model.feature_names, columns.label, *columns.ids, *columns.scores.values()]
    if columns.weight:
        names.append(columns.weight)
    files = [shard_path(plan.dataset, s) for s in plan.dataset.shards]
    yield from Reader(pieces_for(read_segments(run), genes, files), names, columns.group, count=count)


def _score_batch(
    table: pa.Table, plan: Plan, model: MetaModel, speakers: dict[str, list[int]], writer: _Writer
) -> None:
    columns, k = plan.columns, len(plan.columns.classes)
    gene = as_text(table.column(columns.group))
    allowed = [speakers[g] for g in gene.to_pylist()]
    total = np.zeros((table.num_rows, k))
    votes = np.zeros(table.num_rows)
    own: dict[int, np.ndarray] = {}
    for position, member in enumerate(model.bundle.members):
        rows = np.fromiter((member.index in a for a in allowed), dtype=bool, count=len(allowed))
        proba = np.full((table.num_rows, k), np.nan)
        if rows.any():
            part = table if rows.all() else table.filter(pa.array(rows))
            proba[rows] = model.predict_batch(part, [position], where="evaluation genes")
            total[rows] += proba[rows]
            votes += rows
        own[member.index] = proba
    ids = {c: columns.carried[c] for c in columns.ids if c not in ("gene_id", "label", "weight")}
    data: dict[str, object] = {"gene_id": gene} | dict(carried(table, ids))
    data["label"] = as_text(table.column(columns.label))
    weight = (
        as_float32(table.column(columns.weight)) if columns.weight else pa.array(np.ones(table.num_rows, np.float32))
    )
    data["weight"] = weight
    for name, column in columns.scores.items():
        data[f"{name}_score"] = as_float32(table.column(column))
    for code, name in enumerate(columns.classes):
        data[f"{name}_meta"] = pa.array((total[:, code] / votes).astype(np.float32))
    writer.write(pa.table(data), own)


def _out_of_fold(run: RunDir, plan: Plan, genes: Sequence[str]) -> Iterator[pa.Table]:
    """Out-of-fold rows of `genes`, each from the instance where it is a core gene."""
    if not genes:
        return
    core = pl.read_parquet(run.assignments).filter((pl.col("role") == "core") & pl.col("gene_id").is_in(list(genes)))
    for planned in plan.instances:
        mine = core.filter(pl.col("instance") == planned.index)["gene_id"]
        if not mine.is_empty():
            yield from read_oof(run.instance(planned.index).root / "oof.parquet", mine, plan)


def read_oof(path: Path, genes: pl.Series, plan: Plan) -> Iterator[pa.Table]:
    """Rows of `genes` in an oof.parquet, without fold and raw columns, in batches."""
    drop = {"fold", *(f"{c}_raw" for c in plan.columns.classes)}
    names = [n for n in pq.read_schema(path).names if n not in drop]
    wanted = pa.array(genes.to_list(), pa.string())
    for batch in pq.ParquetFile(path).iter_batches(WHOLE_GROUP_ROWS, columns=names):
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.is_in(table.column("gene_id"), wanted))
        if table.num_rows:
            yield table


class _Writer:
    """predictions.parquet, and per member a scratch file of its own probabilities."""

    def __init__(self, folder: Path, plan: Plan, members: Sequence[int]) -> None:
        self._path = folder / "predictions.parquet"
        self._classes = plan.columns.classes
        self._main: pq.ParquetWriter | None = None
        self._own: dict[int, pq.ParquetWriter] = {}
        self.member_files = {m: folder / f"scratch-member-{m}.parquet" for m in members}
        self.rows = 0

    def write(self, table: pa.Table, own: dict[int, np.ndarray]) -> None:
        if self._main is None:
            self._main = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._main.write_table(table.select(self._main.schema.names).cast(self._main.schema))
        for member, path in self.member_files.items():
            proba = own.get(member, np.full((table.num_rows, len(self._classes)), np.nan))
            part = pa.table({c: pa.array(proba[:, i].astype(np.float32)) for i, c in enumerate(self._classes)})
            if member not in self._own:
                self._own[member] = pq.ParquetWriter(path, part.schema)
            self._own[member].write_table(part)
        self.rows += table.num_rows

    def close(self) -> None:
        for writer in (self._main, *self._own.values()):
            if writer is not None:
                writer.close()
