"""One attempt at an instance: matrix, cross-validation, calibration, final models, artefacts, marker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
import xgboost as xgb

from metabatch.data.batches import Piece, RowCount
from metabatch.data.cuts import cuts_of
from metabatch.data.index import class_column, pieces_for
from metabatch.data.shards import shard_path, verify_unchanged
from metabatch.data.shares import Share, shares_of
from metabatch.errors import BudgetError, InputError, OwnedError
from metabatch.models.member import save_member
from metabatch.resources.limits import Limit
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import Accounts, trim_memory
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lock import holds
from metabatch.rundir.manifests import FeatureSet, Plan, PlannedInstance, save
from metabatch.rundir.markers import finish_stage
from metabatch.rundir.publish import attempt_folder
from metabatch.rundir.tables import instance_genes, read_cuts, read_features, read_genes, read_segments
from metabatch.training.checkpoints import Checkpoints
from metabatch.training.crossval import Fitted, instance_metrics
from metabatch.training.device import on_its_device
from metabatch.training.fitting import Fitter
from metabatch.training.job import Job, Report
from metabatch.training.ladder import Rung
from metabatch.training.matrix import Rows, read_rows
from metabatch.training.out_of_fold import OutOfFoldFile
from metabatch.training.parts import parts_of, untrainable
from metabatch.training.soft import with_soft_labels
from metabatch.training.team import Team

log = logging.getLogger(__name__)


def attempt(job: Job, stop: StopFlag) -> Report:
    """Train the instance of `job` on its rung and publish it; as a worker that does not lead, only grow its trees.

    Raises
    ------
    InputError
        The data changed since the plan, or cannot be read.
    BudgetError
        No space for the page files, or parts that could not be trained.
    InterruptedRunError
        `stop` was set; what was trained so far is kept.
    """
    if job.rung is None:
        raise ValueError("a job without a rung")
    run = RunDir(Path(job.run))
    plan = open_plan(run)
    verify_unchanged(plan.dataset)
    instance, planned = run.instance(job.index), plan.instances[job.index]
    plan, why = on_its_device(plan, read_features(run), planned.rows, job.rung)
    accounts, team = Accounts(), Team(job.place)
    key = {"plan": plan.fingerprint, "parts": job.rung.parts, "xgboost": xgb.__version__}
    if job.rung.workers:  # whose shares decide the order of all rows
        key["workers"] = job.rung.workers
    kept = Checkpoints(instance.checkpoints, key, job.checkpoint_seconds, stop)
    work = _Work(run, plan, planned, instance, job.rung, job.threads, accounts, stop, kept, team)
    if not team.leads:
        with accounts.watch():
            work.follow()
        return _done(accounts, accounts.peak(external=job.rung.external))
    with accounts.watch(), attempt_folder(instance.root) as folder:
        ledger = work.train(folder)
        usage = accounts.usage(
            predicted_peak_bytes=job.predicted_peak_bytes, budget_bytes=plan.budget.bytes,
            budget_source=plan.budget.source, threads=job.threads, limit=Limit(job.limit_bytes, job.limit_source),
            rung=job.rung.name, external=job.rung.external, batch_rows=job.rung.batch_rows, parts=job.rung.parts,
            restored_boosters=kept.restored_boosters, restored_rounds=kept.restored_rounds,
            checkpoint_seconds=round(kept.writing_seconds, 3), device=plan.options.device, device_why=why,
        )  # fmt: skip
        save(folder / "resource_usage.json", usage)
        if not holds(instance.root, job.token):
            raise OwnedError(
                f"instance {job.index} was taken over while this process was not heard of: nothing was published",
                next_step="look with bin/status who trains it",
            )
        finish_stage(folder, instance.root, stage="instance", fingerprint=plan.fingerprint, ledger=ledger)
        kept.clear()
    return _done(accounts, usage.measured_peak_bytes)


def _done(accounts: Accounts, peak: int) -> Report:
    return Report(
        outcome="done", exit_code=0, seconds=sum(p.seconds for p in accounts.phases), measured_peak_bytes=peak
    )


@dataclass
class _Work:
    """The steps of one attempt."""

    run: RunDir
    plan: Plan
    planned: PlannedInstance
    instance: InstanceDir
    rung: Rung
    threads: int
    accounts: Accounts
    stop: StopFlag
    kept: Checkpoints
    team: Team

    def follow(self) -> None:
        """Grow the trees with the others of the team."""
        (genes,) = self._parts()
        rows = self._rows(self._pieces(genes), genes)
        self._fitter(read_features(self.run)).grow(0, self._share(genes, rows), rows)

    def train(self, folder: Path) -> list[str]:
        """All steps in order, a part of the genes after the other; returns the genes trained on.

        Parameters
        ----------
        folder : Path
            Everything is written below it.
        """
        features = read_features(self.run)
        fitter = self._fitter(features)
        fitted = []
        with OutOfFoldFile(folder / "oof.parquet", self.plan) as oof:
            for number, genes in enumerate(self._parts()):
                fitted.append(self._train_part(number, genes, fitter, oof))
                trim_memory()
        ledger = sorted(g for part in fitted for g in part.rows.genes)
        self._check_ledger(ledger, sum(len(part.rows) for part in fitted))
        save_member(folder / "model", [part.member for part in fitted])
        with self.accounts.phase("metrics"):
            save(folder / "metrics.json", instance_metrics(fitted, self.plan))
        if self.plan.options.analyses:
            self._explain(fitted, features, folder)
        return ledger

    def _fitter(self, features: FeatureSet) -> Fitter:
        return Fitter(
            self.run, self.plan, self.planned.index, self.instance, self.rung, features,
            cuts_of(read_cuts(self.run)), self.threads, self.accounts, self.stop, self.kept, self.team,
        )  # fmt: skip

    def _explain(self, fitted: list[Fitted], features: FeatureSet, folder: Path) -> None:
        """The analyses: of the models of the first part, and of the out-of-fold rows of all."""
        from metabatch.training.explain import explain  # libraries that training does without
        from metabatch.training.material import Material

        first, parts = fitted[0], len(fitted)
        fitted.clear()
        if first.cv is not None:
            first.cv.raw = first.cv.meta = first.cv.raw[:0]  # they stand in oof.parquet
        trim_memory()
        with self.accounts.phase("analysis") as phase:
            count = RowCount()
            material = Material(
                self.run, self.plan, self.planned.index, features, folder, self.threads, self.stop,
                msgspec.json.decode((folder / "metrics.json").read_bytes()), parts,
                self._pieces(first.rows.genes), first, count,
            )  # fmt: skip
            explain(material, self.instance.progress)
            phase.rows_read, phase.rows_asked = count.read, count.asked

    def _parts(self) -> list[list[str]]:
        columns = self.plan.columns
        names = pl.Series(instance_genes(self.run, self.planned.index), dtype=pl.String)
        table = read_genes(self.run).filter(pl.col("gene_id").is_in(names.implode()))
        table = table.rename({f"n_{name}": class_column(i) for i, name in enumerate(columns.classes)})
        if columns.split:
            table = table.drop("split").rename({"split_group": "split"})
        groups = parts_of(
            table, self.rung.parts, len(columns.classes), self.plan.seed, by_split=columns.split is not None
        )
        problem = untrainable(table, groups, self.plan) if len(groups) > 1 else None
        if problem is not None:
            raise BudgetError(
                f"instance {self.planned.index} cannot be trained in {self.rung.parts} parts: {problem}",
                next_step="give the job more memory, or plan again",
            )
        return groups

    def _train_part(self, number: int, genes: list[str], fitter: Fitter, oof: OutOfFoldFile) -> Fitted:
        pieces = self._pieces(genes)
        rows = self._rows(pieces, genes)
        part = fitter.fit(number, self._share(genes, rows), rows)
        rows = part.rows
        with self.accounts.phase("write") as phase:
            if part.cv is not None:
                count = RowCount()
                oof.add(pieces, rows, part.cv, count)
                phase.rows_read, phase.rows_asked = count.read, count.asked
        return part

    def _rows(self, pieces: Sequence[Piece], genes: Sequence[str]) -> Rows:
        with self.accounts.phase("rows") as phase:
            count = RowCount()
            rows = read_rows(pieces, genes, self.plan.columns, count, self.rung.batch_rows)
            if self.plan.teacher is not None:
                rows = with_soft_labels(rows, self.run.soft_labels, self.plan.columns.classes)
            phase.rows_read, phase.rows_asked = count.read, count.asked
        return rows

    def _share(self, genes: Sequence[str], rows: Rows) -> Share:
        """What of the rows this worker holds; the team is told."""
        if self.team.place is None:
            return Share(self._pieces(genes), rows.batches, len(rows))
        shares, rank = self._shares(genes), self.team.place.rank
        sizes = dict(read_genes(self.run).select("gene_id", "rows").iter_rows())
        start = sum(sizes[gene] for share in shares[:rank] for gene in share)
        pieces = self._row_groups(shares[rank : rank + 1])
        own = read_rows(pieces, shares[rank], self.plan.columns, RowCount(), self.rung.batch_rows)
        self.team.rows = slice(start, start + len(own))
        return Share(pieces, own.batches, len(own))

    def _shares(self, genes: Sequence[str]) -> list[list[str]]:
        """The genes of each worker of the team."""
        if self.team.size == 1:
            return [list(genes)]
        table = read_genes(self.run).filter(pl.col("gene_id").is_in(pl.Series(genes, dtype=pl.String).implode()))
        return shares_of(table, read_segments(self.run), self.team.size)

    def _pieces(self, genes: Sequence[str]) -> list[Piece]:
        """Their row groups; of a team, those of one worker's genes after the other's: the order of all its rows."""
        return self._row_groups(self._shares(genes))

    def _row_groups(self, shares: Sequence[Sequence[str]]) -> list[Piece]:
        dataset, segments = self.plan.dataset, read_segments(self.run)
        files = [shard_path(dataset, s) for s in dataset.shards]
        return [piece for share in shares for piece in pieces_for(segments, share, files)]

    def _check_ledger(self, ledger: list[str], rows: int) -> None:
        wanted = instance_genes(self.run, self.planned.index)
        if ledger != wanted or rows != self.planned.rows:
            lacking = sorted(set(wanted) - set(ledger))[:5]
            raise InputError(
                f"the data set gives {len(ledger)} genes and {rows} rows for instance {self.planned.index}",
                expected=f"{len(wanted)} genes and {self.planned.rows} rows as planned",
                where=f"lacking: {', '.join(lacking)}" if lacking else self.plan.dataset.path,
            )
