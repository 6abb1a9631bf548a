"""Predictions that no trained row flatters.

Holdout genes are scored by all members. Without a holdout each gene is scored only by members that did
not train on it nor on its split group; where there is none (a single model of all genes), its
out-of-fold scores stand. A combination that was learned from training genes is, for these genes, the one that was
learned without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.data.batches import RowCount, as_float32, as_text, carried
from metabatch.ensemble.combination import CrossedRules, crossed_rules
from metabatch.ensemble.estimator import MetaModel
from metabatch.ensemble.speakers import member_scores, out_of_fold_rows, speakers
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan
from metabatch.rundir.tables import home_instances, read_genes


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
    may, how = _speakers(run, plan, genes)
    asked = {g: members for g, members in may.items() if members}
    writer = _Writer(folder, plan, [m.index for m in model.bundle.members] if asked else [])
    count = RowCount()
    total = int(genes.filter(pl.col("gene_id").is_in(list(may)))["rows"].sum())
    rules = crossed_rules(run.ensemble)
    with Progress("evaluate", total, "rows") as progress:
        try:
            for table, proba in member_scores(run, plan, model, asked, count):
                writer.write(
                    _scored(table, proba, plan, model, rules), dict(zip(writer.member_files, proba, strict=True))
                )
                progress.advance(table.num_rows)
                stop.check()
            for table in out_of_fold_rows(run, plan, [g for g, members in may.items() if not members]):
                writer.write(table, {})
                progress.advance(table.num_rows)
                stop.check()
        finally:
            writer.close()
    if writer.rows != total:
        raise InputError(f"{writer.rows} rows were scored", expected=f"{total} rows of {len(may)} genes")
    return Scored(how, len(may), writer.rows, writer.member_files, count)


def _speakers(run: RunDir, plan: Plan, genes: pl.DataFrame) -> tuple[dict[str, list[int]], str]:
    """Which members (positions) may score which gene."""
    held = genes.filter(pl.col("split") == "holdout")["gene_id"].to_list()
    if held:
        members = list(range(len(plan.instances)))
        return dict.fromkeys(held, members), f"holdout genes ({plan.holdout.how}), scored by all members"
    scorable = set(home_instances(run, plan)["gene_id"])
    everyone = speakers(run, plan)
    # With a missing instance: a gene that nobody in the ensemble trained on, while all trained on its split group.
    may = {gene: members for gene, members in everyone.items() if members or gene in scorable}
    lost = len(everyone) - len(may)
    kept = f"all genes but {lost} that no member can be asked about" if lost else "all genes"
    alone = sum(not members for members in may.values())
    if alone and not plan.options.n_folds:
        raise InputError(
            "there is no holdout and no cross-validation: nothing was kept back to evaluate on"
            if alone == len(may)
            else f"{alone} gene(s) were trained on by every member and there are no out-of-fold scores",
            expected="holdout genes or out-of-fold scores",
            next_step="plan again with --holdout-fraction above 0, or --n-folds 2 or more",
        )
    if alone == len(may):
        return may, f"{kept}, out-of-fold scores (no holdout)"
    rest = f"; {alone} genes by out-of-fold scores" if alone else ""
    return may, f"{kept}, each by the members that did not train on it (no holdout){rest}"


def _scored(table: pa.Table, proba: np.ndarray, plan: Plan, model: MetaModel, rules: CrossedRules) -> pa.Table:
    columns = plan.columns
    gene = as_text(table.column(columns.group))
    ids = {c: columns.carried[c] for c in columns.ids if c not in ("gene_id", "label", "weight")}
    data: dict[str, object] = {"gene_id": gene} | dict(carried(table, ids))
    data["label"] = as_text(table.column(columns.label))
    weight = (
        as_float32(table.column(columns.weight)) if columns.weight else pa.array(np.ones(table.num_rows, np.float32))
    )
    data["weight"] = weight
    for name, column in columns.scores.items():
        data[f"{name}_score"] = as_float32(table.column(column))
    meta = rules.pool(proba, table, gene.to_pylist(), model.bundle.combination)
    for code, name in enumerate(columns.classes):
        data[f"{name}_meta"] = pa.array(meta[:, code].astype(np.float32))
    return pa.table(data)


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
            proba = own[member] if own else np.full((table.num_rows, len(self._classes)), np.nan)
            part = pa.table({c: pa.array(proba[:, i].astype(np.float32)) for i, c in enumerate(self._classes)})
            if member not in self._own:
                self._own[member] = pq.ParquetWriter(path, part.schema)
            self._own[member].write_table(part)
        self.rows += table.num_rows

    def close(self) -> None:
        for writer in (self._main, *self._own.values()):
            if writer is not None:
                writer.close()
