"""One attempt at an instance: matrix, cross-validation, calibration, final models, artefacts, marker."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import xgboost as xgb

from metabatch.data.batches import Piece, RowCount
from metabatch.data.cuts import cuts_of
from metabatch.data.index import class_column, pieces_for
from metabatch.data.preprocess import Preprocessor
from metabatch.data.shards import shard_path, verify_unchanged
from metabatch.errors import BudgetError, InputError, OwnedError
from metabatch.models.calibration import Calibration, Calibrator, prior_ratios
from metabatch.models.member import Member, save_member
from metabatch.resources.limits import Limit
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import Accounts, trim_memory
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import InstanceDir, RunDir, class_stems
from metabatch.rundir.lock import holds
from metabatch.rundir.manifests import FeatureSet, Plan, PlannedInstance, save
from metabatch.rundir.markers import finish_stage
from metabatch.rundir.publish import attempt_folder
from metabatch.rundir.tables import instance_genes, read_cuts, read_features, read_genes, read_segments
from metabatch.training.boosters import booster_params, train_final
from metabatch.training.checkpoints import Checkpoints, Slot
from metabatch.training.crossval import (
    CrossValidation,
    Fitted,
    booster_seed,
    calibrate,
    cross_fitted,
    cross_validate,
    instance_metrics,
)
from metabatch.training.folds import class_counts, gene_folds
from metabatch.training.job import Job, Report
from metabatch.training.ladder import Rung
from metabatch.training.matrix import Rows, build_matrix, decoded_passes, read_rows
from metabatch.training.out_of_fold import OutOfFoldFile
from metabatch.training.parts import parts_of, untrainable

log = logging.getLogger(__name__)


def attempt(job: Job, stop: StopFlag) -> Report:
    """Train the instance of `job` on its rung and publish it.

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
    accounts = Accounts()
    with accounts.watch(), attempt_folder(instance.root) as folder:
        key = {"plan": plan.fingerprint, "parts": job.rung.parts, "xgboost": xgb.__version__}
        kept = Checkpoints(instance.checkpoints, key, job.checkpoint_seconds, stop)
        work = _Work(run, plan, planned, instance, job.rung, folder, job.threads, accounts, stop, kept)
        ledger = work.train()
        usage = accounts.usage(
            predicted_peak_bytes=job.predicted_peak_bytes, budget_bytes=plan.budget.bytes,
            budget_source=plan.budget.source, threads=job.threads, limit=Limit(job.limit_bytes, job.limit_source),
            rung=job.rung.name, external=job.rung.external, batch_rows=job.rung.batch_rows, parts=job.rung.parts,
            restored_boosters=kept.restored_boosters, restored_rounds=kept.restored_rounds,
            checkpoint_seconds=round(kept.writing_seconds, 3),
        )  # fmt: skip
        save(folder / "resource_usage.json", usage)
        if not holds(instance.root, job.token):
            raise OwnedError(
                f"instance {job.index} was taken over while this process was not heard of: nothing was published",
                next_step="look with bin/status who trains it",
            )
        finish_stage(folder, instance.root, stage="instance", fingerprint=plan.fingerprint, ledger=ledger)
        kept.clear()
    return Report(
        outcome="done", exit_code=0, seconds=sum(p.seconds for p in accounts.phases),
        measured_peak_bytes=usage.measured_peak_bytes,
    )  # fmt: skip


@dataclass
class _Work:
    """The steps of one attempt; everything is written below `folder`."""

    run: RunDir
    plan: Plan
    planned: PlannedInstance
    instance: InstanceDir
    rung: Rung
    folder: Path
    threads: int
    accounts: Accounts
    stop: StopFlag
    kept: Checkpoints

    def train(self) -> list[str]:
        """All steps in order, a part of the genes after the other; returns the genes trained on."""
        features = read_features(self.run)
        cuts = cuts_of(read_cuts(self.run))
        fitted = []
        with OutOfFoldFile(self.folder / "oof.parquet", self.plan) as oof:
            for number, genes in enumerate(self._parts()):
                fitted.append(self._train_part(number, genes, features, cuts, oof))
                trim_memory()
        ledger = sorted(g for part in fitted for g in part.rows.genes)
        self._check_ledger(ledger, sum(len(part.rows) for part in fitted))
        save_member(self.folder / "model", [part.member for part in fitted])
        with self.accounts.phase("metrics"):
            save(self.folder / "metrics.json", instance_metrics(fitted, self.plan))
        return ledger

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

    def _train_part(
        self, number: int, genes: list[str], features: FeatureSet, cuts: Sequence[np.ndarray], oof: OutOfFoldFile
    ) -> Fitted:
        plan = self.plan
        files = [shard_path(plan.dataset, s) for s in plan.dataset.shards]
        pieces = pieces_for(read_segments(self.run), genes, files)
        with self.accounts.phase("rows") as phase:
            count = RowCount()
            rows = read_rows(pieces, genes, plan.columns, count, self.rung.batch_rows)
            phase.rows_read, phase.rows_asked = count.read, count.asked
        part = self._fit(number, pieces, rows, features, cuts)
        with self.accounts.phase("write") as phase:
            if part.cv is not None:
                count = RowCount()
                oof.add(pieces, rows, part.cv, count)
                phase.rows_read, phase.rows_asked = count.read, count.asked
        return part

    def _check_ledger(self, ledger: list[str], rows: int) -> None:
        wanted = instance_genes(self.run, self.planned.index)
        if ledger != wanted or rows != self.planned.rows:
            lacking = sorted(set(wanted) - set(ledger))[:5]
            raise InputError(
                f"the data set gives {len(ledger)} genes and {rows} rows for instance {self.planned.index}",
                expected=f"{len(wanted)} genes and {self.planned.rows} rows as planned",
                where=f"lacking: {', '.join(lacking)}" if lacking else self.plan.dataset.path,
            )

    def _fit(
        self, number: int, pieces: Sequence[Piece], rows: Rows, features: FeatureSet, cuts: Sequence[np.ndarray]
    ) -> Fitted:
        plan, options = self.plan, self.plan.options
        count = RowCount()
        passes = decoded_passes(external=self.rung.external, missing=features.has_missing)
        with contextlib.ExitStack() as stack:
            with (
                Progress("matrix", passes * len(rows), "rows", self.instance.progress) as progress,
                self.accounts.phase("matrix") as phase,
            ):

                def on_batch(batch_rows: int) -> None:
                    progress.advance(batch_rows)
                    self.stop.check()

                matrix = stack.enter_context(
                    build_matrix(
                        pieces, Preprocessor(features.features), cuts, plan.columns, rows.batches,
                        missing=features.has_missing, max_bin=options.max_bin, threads=self.threads,
                        where=f"instance {self.planned.index}", count=count, on_batch=on_batch,
                        batch_rows=self.rung.batch_rows,
                        page_bytes=plan.memory_law.page_bytes(len(rows)) if self.rung.external else None,
                    )
                )  # fmt: skip
                phase.rows_read, phase.rows_asked, phase.passes = count.read, count.asked, passes
            cv, boosters, rounds = self._boost(number, matrix, rows)
            del matrix  # its page files go with the stack: let go of them first
        trim_memory()
        return Fitted(rows, cv, Member(boosters, self._calibration(rows, cv)), rounds)

    def _calibration(self, rows: Rows, cv: CrossValidation | None) -> Calibration:
        """After the matrix is gone: fitting needs more memory a row than boosting."""
        plan, classes, prior = self.plan, self.plan.columns.classes, self.plan.options.prior
        if cv is None:
            return Calibration(
                classes=classes,
                calibrators={c: Calibrator(method="none") for c in classes},
                prior_ratios=prior_ratios(rows.label, rows.weight, classes, prior) if prior else None,
            )
        with self.accounts.phase("calibration"):
            cv.meta = cross_fitted(cv, rows, plan)
            return calibrate(cv.raw, rows, classes, plan.options, cv.fold)

    def _boost(
        self, number: int, matrix: xgb.DMatrix, rows: Rows
    ) -> tuple[CrossValidation | None, dict[str, xgb.Booster], dict[str, int]]:
        plan, options = self.plan, self.plan.options
        classes = plan.columns.classes
        total = len(classes) * options.n_estimators * (options.n_folds + 1)
        with Progress("boosting", total, "rounds", self.instance.progress) as progress:
            self.kept.on_restored = progress.advance
            cv: CrossValidation | None = None
            rounds = dict.fromkeys(classes, options.n_estimators)
            if options.n_folds:
                with self.accounts.phase("cross-validation"):
                    fold = self._folds(rows)
                    cv = cross_validate(
                        matrix, rows, fold, plan, self.planned.index, self.threads, progress.advance, progress.skip,
                        self.accounts.note_fold, functools.partial(self._slot, number),
                    )  # fmt: skip
                    rounds = cv.rounds
            with self.accounts.phase("final-models"):
                boosters = {}
                weight = rows.weight if plan.columns.weight or cv is not None else None
                for code, name in enumerate(classes):
                    progress.skip(options.n_estimators - rounds[name])
                    seed = booster_seed(plan.seed, self.planned.index, code, -1)
                    params = booster_params(options, plan.booster, self.threads, seed)
                    slot = self._slot(number, code, None, params)
                    boosters[name] = train_final(
                        matrix, params, rows.label == code, weight, rounds[name], progress.advance, slot
                    )
        return cv, boosters, rounds

    def _slot(self, part: int, code: int, fold: int | None, params: Mapping[str, object]) -> Slot:
        """Where a booster is kept: of a part of the genes, a class, and a fold (None: the final model)."""
        what = "final" if fold is None else f"fold-{fold}"
        stem = class_stems(self.plan.columns.classes)[code]
        return self.kept.slot(f"part-{part}.{stem}.{what}", params)

    def _folds(self, rows: Rows) -> np.ndarray:
        columns, options = self.plan.columns, self.plan.options
        table = class_counts(rows.gene, rows.label, rows.genes, len(columns.classes))
        if columns.split:
            groups = read_genes(self.run).select("gene_id", pl.col("split_group").alias("split"))
            table = table.join(groups, on="gene_id", how="left", maintain_order="left")
        folds = gene_folds(
            table, len(columns.classes), options.n_folds, self.plan.seed, by_split=columns.split is not None
        )
        of_gene = np.array([folds[g] for g in rows.genes], dtype=np.int16)
        return of_gene[rows.gene]
