"""One instance from start to done.json: matrix, cross-validation, calibration, final models, artefacts."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import xgboost as xgb

from metabatch.data.batches import Piece, RowCount
from metabatch.data.index import pieces_for
from metabatch.data.preprocess import Preprocessor
from metabatch.data.shards import shard_path, verify_unchanged
from metabatch.errors import BudgetError, InputError, MetabatchError, UsageError
from metabatch.models.calibration import Calibration, Calibrator, prior_ratios
from metabatch.models.member import Member, save_member
from metabatch.resources.limits import cpu_count, memory_limits
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.resources.usage import Accounts
from metabatch.rundir.fingerprint import instance_genes, open_plan, read_features, read_genes, read_segments
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lease import Attempt, Owner, hold, record_attempt
from metabatch.rundir.manifests import Plan, PlannedInstance, save
from metabatch.rundir.markers import check_stage, finish_stage, is_marked, utc_now
from metabatch.rundir.publish import attempt_folder, remove_dead_attempts
from metabatch.training.boosters import booster_params, train_final
from metabatch.training.crossval import (
    CrossValidation,
    booster_seed,
    calibrate,
    cross_validate,
    instance_metrics,
)
from metabatch.training.folds import class_counts, gene_folds
from metabatch.training.matrix import Rows, build_matrix, read_rows
from metabatch.training.out_of_fold import write_out_of_fold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceResult:
    """What came of it. `already`: it was done before and nothing was done now."""

    index: int
    already: bool
    seconds: float = 0.0
    peak_rss_bytes: int = 0


def train_instance(run: RunDir, index: int, *, threads: int | None = None, force: bool = False) -> InstanceResult:
    """Train instance `index` of a planned run.

    Raises
    ------
    UsageError
        No such instance in the plan.
    InputError
        The data changed since the plan, or cannot be read.
    BudgetError
        The prediction exceeds the memory this process may use; nothing is started.
    OwnedError
        Another live process trains it.
    """
    plan = open_plan(run)
    if not 0 <= index < len(plan.instances):
        raise UsageError(
            f"there is no instance {index} in this plan",
            expected=f"0 to {len(plan.instances) - 1}",
            where=str(run.plan),
        )
    instance = run.instance(index)
    if not force and _is_done(instance, plan):
        return InstanceResult(index, already=True)
    verify_unchanged(plan.dataset)
    planned = plan.instances[index]
    limit = memory_limits()[0]
    if planned.predicted_peak_bytes > limit.bytes:
        raise BudgetError(
            f"instance {index} is predicted to need {planned.predicted_peak_bytes / 2**30:.2f} GB, "
            f"{100 * planned.predicted_peak_bytes / limit.bytes:.0f} % of what this process may use",
            expected=f"at most {limit.bytes / 2**30:.2f} GB ({limit.source})",
            next_step=f"give the job --mem={planned.mem_request_mb}M, or plan again with --max-memory-per-instance-gb "
            f"{limit.bytes / 2**30 * 0.9:.2g}",
        )
    with hold(
        instance, "external" if plan.strategy == "external" else "in-memory", planned.predicted_peak_bytes
    ) as owner:
        if not force and _is_done(instance, plan):  # somebody else finished it while we waited
            return InstanceResult(index, already=True)
        remove_dead_attempts(instance.root, owned=True)
        return _attempt(run, plan, planned, instance, owner, threads or plan.options.threads or cpu_count())


def _is_done(instance: InstanceDir, plan: Plan) -> bool:
    if not is_marked(instance.root):
        return False
    try:
        check_stage(instance.root, stage="instance", fingerprint=plan.fingerprint)
    except InputError as error:
        log.warning("instance %d is trained again: %s", instance.index, error.found)
        return False
    return True


def _attempt(
    run: RunDir, plan: Plan, planned: PlannedInstance, instance: InstanceDir, owner: Owner, threads: int
) -> InstanceResult:
    accounts = Accounts()
    outcome, message = "failed", None
    log.info("instance %d, attempt %d on %s, %d threads", planned.index, owner.attempt, owner.process.host, threads)
    try:
        with stop_on_signal() as stop, attempt_folder(instance.root) as folder:
            work = _Work(run, plan, planned, instance, folder, threads, accounts, stop)
            ledger = work.train()
            usage = accounts.usage(
                predicted_peak_bytes=planned.predicted_peak_bytes, budget_bytes=plan.budget.bytes,
                budget_source=plan.budget.source, threads=threads,
            )  # fmt: skip
            save(folder / "resource_usage.json", usage)
            finish_stage(folder, instance.root, stage="instance", fingerprint=plan.fingerprint, ledger=ledger)
        outcome = "done"
    except MetabatchError as error:
        outcome, message = ("interrupted" if error.exit_code == 75 else "failed"), str(error)
        raise
    except MemoryError:
        outcome, message = "out-of-memory", "MemoryError"
        raise
    except Exception as error:  # for the record of the attempt; it goes on
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        instance.progress.unlink(missing_ok=True)
        record_attempt(instance, _attempt_record(owner, accounts, outcome, message))
    return InstanceResult(
        planned.index, already=False, seconds=sum(p.seconds for p in accounts.phases), peak_rss_bytes=accounts.peak
    )


def _attempt_record(owner: Owner, accounts: Accounts, outcome: str, message: str | None) -> Attempt:
    return Attempt(
        attempt=owner.attempt,
        started=owner.started,
        ended=utc_now(),
        outcome=outcome,
        rung=owner.rung,
        host=owner.process.host,
        slurm_job_id=owner.slurm_job_id,
        predicted_peak_bytes=owner.predicted_peak_bytes,
        measured_peak_bytes=accounts.peak,
        message=message,
    )


@dataclass
class _Work:
    """The steps of one attempt; everything is written below `folder`."""

    run: RunDir
    plan: Plan
    planned: PlannedInstance
    instance: InstanceDir
    folder: Path
    threads: int
    accounts: Accounts
    stop: StopFlag

    def train(self) -> list[str]:
        """All steps in order; returns the genes trained on."""
        plan = self.plan
        pieces = self._pieces()
        with self.accounts.phase("rows") as phase:
            count = RowCount()
            rows = read_rows(pieces, plan.columns, count)
            phase.rows_read, phase.rows_asked = count.read, count.asked
            self._check_rows(rows)
        prepare = Preprocessor(read_features(self.run).features)
        cv, member, rounds = self._fit(pieces, rows, prepare)
        with self.accounts.phase("write") as phase:
            save_member(self.folder / "model", member)
            if cv is not None:
                count = RowCount()
                write_out_of_fold(self.folder / "oof.parquet", pieces, rows, cv, plan, count)
                phase.rows_read, phase.rows_asked = count.read, count.asked
            save(self.folder / "metrics.json", instance_metrics(cv, rows, plan, rounds))
        return rows.genes

    def _pieces(self) -> list[Piece]:
        files = [shard_path(self.plan.dataset, s) for s in self.plan.dataset.shards]
        return pieces_for(read_segments(self.run), instance_genes(self.run, self.planned.index), files)

    def _check_rows(self, rows: Rows) -> None:
        wanted = instance_genes(self.run, self.planned.index)
        if rows.genes != wanted or len(rows) != self.planned.rows:
            lacking = sorted(set(wanted) - set(rows.genes))[:5]
            raise InputError(
                f"the data set gives {len(rows.genes)} genes and {len(rows)} rows for instance {self.planned.index}",
                expected=f"{len(wanted)} genes and {self.planned.rows} rows as planned",
                where=f"lacking: {', '.join(lacking)}" if lacking else self.plan.dataset.path,
            )

    def _fit(
        self, pieces: Sequence[Piece], rows: Rows, prepare: Preprocessor
    ) -> tuple[CrossValidation | None, Member, dict[str, int]]:
        plan, options = self.plan, self.plan.options
        count = RowCount()
        with contextlib.ExitStack() as stack:
            # XGBoost passes over the data several times (sketch, index); 4 is what it does for one matrix.
            with (
                Progress("matrix", 4 * len(rows), "rows", self.instance.progress) as progress,
                self.accounts.phase("matrix") as phase,
            ):

                def on_batch(batch_rows: int) -> None:
                    progress.advance(batch_rows)
                    self.stop.check()

                matrix = stack.enter_context(
                    build_matrix(
                        pieces, prepare, plan.columns, max_bin=options.max_bin, threads=self.threads,
                        where=f"instance {self.planned.index}", count=count, on_batch=on_batch,
                        scratch=scratch_folder() if plan.strategy == "external" else None,
                        page_bytes=self.planned.page_bytes,
                    )
                )  # fmt: skip
                phase.rows_read, phase.rows_asked = count.read, count.asked
            result = self._boost(matrix, rows)
            del matrix  # its page files go with the stack: let go of them first
            return result

    def _boost(self, matrix: xgb.DMatrix, rows: Rows) -> tuple[CrossValidation | None, Member, dict[str, int]]:
        plan, options = self.plan, self.plan.options
        classes = plan.columns.classes
        total = len(classes) * options.n_estimators * (options.n_folds + 1)
        with Progress("boosting", total, "rounds", self.instance.progress) as progress:

            def on_round() -> None:
                progress.advance()
                self.stop.check()

            cv: CrossValidation | None = None
            calibration = Calibration(
                classes=classes,
                calibrators={c: Calibrator(method="none") for c in classes},
                prior_ratios=prior_ratios(rows.label, rows.weight, classes, options.prior) if options.prior else None,
            )
            rounds = dict.fromkeys(classes, options.n_estimators)
            if options.n_folds:
                with self.accounts.phase("cross-validation"):
                    fold = self._folds(rows)
                    cv = cross_validate(
                        matrix, rows, fold, plan, self.planned.index, self.threads, on_round, progress.skip
                    )
                    rounds = cv.rounds
                    calibration = calibrate(cv.raw, rows, plan)
            with self.accounts.phase("final-models"):
                boosters = {}
                for code, name in enumerate(classes):
                    progress.skip(options.n_estimators - rounds[name])
                    seed = booster_seed(plan.seed, self.planned.index, code, -1)
                    params = booster_params(options, plan.booster, self.threads, seed)
                    boosters[name] = train_final(
                        matrix, params, rows.label == code, rows.weight, rounds[name], on_round
                    )
        return cv, Member(boosters, calibration), rounds

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


def scratch_folder() -> Path:
    """Node-local scratch for external memory: $SLURM_TMPDIR, else $TMPDIR or the system's."""
    return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
