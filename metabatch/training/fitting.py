"""From rows to models: one matrix, cross-validation, final models, ablation while the matrix is there, calibration."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import sklearn
import xgboost as xgb

from metabatch.data.batches import Piece, RowCount
from metabatch.data.preprocess import Preprocessor
from metabatch.models.calibration import Calibration, Calibrator, prior_ratios
from metabatch.models.linear import LinearMember
from metabatch.models.member import Member
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import Accounts, trim_memory
from metabatch.rundir.layout import InstanceDir, RunDir, class_stems
from metabatch.rundir.manifests import FeatureSet, Plan
from metabatch.rundir.tables import read_genes
from metabatch.training.boosters import booster_params, train_final
from metabatch.training.checkpoints import Checkpoints, Slot
from metabatch.training.crossval import (
    CrossValidation,
    Fitted,
    booster_seed,
    calibrate,
    cross_fitted,
    cross_validate,
)
from metabatch.training.epochs import cross_validation, final_line
from metabatch.training.folds import class_counts, gene_folds
from metabatch.training.incremental import Incremental
from metabatch.training.ladder import Rung
from metabatch.training.matrix import Rows, build_matrix, decoded_passes
from metabatch.training.shuffled import ShuffledRows

if TYPE_CHECKING:
    from metabatch.analysis.ablation import Variant


@dataclass(frozen=True)
class Fitter:
    """Fits the genes of an instance, or one part of them after the other."""

    run: RunDir
    plan: Plan
    index: int
    instance: InstanceDir
    rung: Rung
    features: FeatureSet
    cuts: Sequence[np.ndarray]
    threads: int
    accounts: Accounts
    stop: StopFlag
    kept: Checkpoints

    def fit(self, number: int, pieces: Sequence[Piece], rows: Rows) -> Fitted:
        """Part `number` of the genes: the rows of `pieces`, in their order."""
        if self.rung.linear:
            return self._fit_lines(number, pieces, rows)
        count = RowCount()
        external, missing = self.rung.external, self.features.has_missing
        passes = decoded_passes(external=external, missing=missing)
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
                        pieces, Preprocessor(self.features.features), self.cuts, self.plan.columns, rows.batches,
                        missing=missing, max_bin=self.plan.options.max_bin, threads=self.threads,
                        where=f"instance {self.index}", count=count, on_batch=on_batch,
                        batch_rows=self.rung.batch_rows,
                        page_bytes=self.plan.memory_law.page_bytes(len(rows)) if external else None,
                    )
                )  # fmt: skip
                phase.rows_read, phase.rows_asked, phase.passes = count.read, count.asked, passes
            cv, boosters, rounds = self._boost(number, matrix, rows)
            variants = self._ablation(matrix, rows, cv, sum(rounds.values())) if number == 0 else []
            del matrix  # its page files go with the stack: let go of them first
        trim_memory()
        # The soft labels have served.
        return Fitted(replace(rows, soft=None), cv, Member(boosters, self._calibration(rows, cv)), rounds, variants)

    def _fit_lines(self, number: int, pieces: Sequence[Piece], rows: Rows) -> Fitted:
        """Linear models, out of core."""
        plan, options, count = self.plan, self.plan.options, RowCount()
        fold = self._folds(rows)[0] if options.n_folds else None
        passes = 1 + options.epochs + bool(options.n_folds)
        with (
            Progress("learning", passes * len(rows), "rows", self.instance.progress) as progress,
            self.accounts.phase("learning") as phase,
        ):

            def on_rows(read: int) -> None:
                progress.advance(read)
                self.stop.check()

            source = ShuffledRows(
                pieces, Preprocessor(self.features.features), plan.columns.group, f"instance {self.index}", count,
                on_rows,
            )  # fmt: skip
            params = {
                "model_spec": options.model_spec, "alpha": options.alpha, "batch_size": options.batch_size,
                "epochs": options.epochs, "scikit-learn": sklearn.__version__,
            }  # fmt: skip
            slot = self.kept.slot(f"part-{number}.lines", params)
            epochs = Incremental(source, rows, fold, plan, self.index, self.threads, slot).fit()
            phase.rows_read, phase.rows_asked, phase.passes = count.read, count.asked, passes
        cv = None if fold is None else cross_validation(epochs, rows, fold, plan.columns.classes, options.epochs)
        rounds = dict.fromkeys(plan.columns.classes, options.epochs) if cv is None else cv.rounds
        line = final_line(epochs, list(rounds.values()))
        trim_memory()
        return Fitted(rows, cv, LinearMember(line, self._calibration(rows, cv)), rounds)

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
                    fold, widest = self._folds(rows)
                    cv = cross_validate(
                        matrix, rows, fold, plan, self.index, self.threads, progress.advance, progress.skip,
                        self.accounts.note_fold, functools.partial(self._slot, number),
                        prefer=widest,
                    )  # fmt: skip
                    rounds = cv.rounds
            with self.accounts.phase("final-models"):
                boosters = {}
                weight = rows.weight if plan.columns.weight or cv is not None else None
                for code, name in enumerate(classes):
                    progress.skip(options.n_estimators - rounds[name])
                    seed = booster_seed(plan.seed, self.index, code, -1)
                    params = booster_params(options, plan.booster, self.threads, seed)
                    slot = self._slot(number, code, None, params)
                    boosters[name] = train_final(
                        matrix, params, rows.label == code, weight, rounds[name], progress.advance, slot,
                        soft=rows.soft_of(code),
                    )  # fmt: skip
        return cv, boosters, rounds

    def _ablation(
        self, matrix: xgb.DMatrix, rows: Rows, cv: CrossValidation | None, final_rounds: int
    ) -> list[Variant]:
        """Short boosters on subsets of the features; while the matrix is there."""
        if cv is None or "ablation" not in self.plan.options.analyses:
            return []
        from metabatch.training.ablation import grow_variants  # its library of figures is for analyses only

        trained = final_rounds + sum(f["trained_rounds"] for folds in cv.folds.values() for f in folds)
        with self.accounts.phase("ablation"):
            return grow_variants(
                matrix, rows, cv.fold, cv.kept_fold, self.plan, self.features.features, self.threads, trained,
                self.stop.check,
            )  # fmt: skip

    def _slot(self, part: int, code: int, fold: int | None, params: Mapping[str, object]) -> Slot:
        """Where a booster is kept: of a part of the genes, a class, and a fold (None: the final model)."""
        what = "final" if fold is None else f"fold-{fold}"
        stem = class_stems(self.plan.columns.classes)[code]
        return self.kept.slot(f"part-{part}.{stem}.{what}", params)

    def _folds(self, rows: Rows) -> tuple[np.ndarray, list[int]]:
        """The fold of each row; and the folds, that of most genes (or split groups) first."""
        columns, options = self.plan.columns, self.plan.options
        table = class_counts(rows.gene, rows.label, rows.genes, len(columns.classes))
        if columns.split:
            groups = read_genes(self.run).select("gene_id", pl.col("split_group").alias("split"))
            table = table.join(groups, on="gene_id", how="left", maintain_order="left")
        folds = gene_folds(
            table, len(columns.classes), options.n_folds, self.plan.seed, by_split=columns.split is not None
        )
        of_gene = np.array([folds[g] for g in rows.genes], dtype=np.int16)
        units = table.select(unit="split" if columns.split else "gene_id").with_columns(fold=of_gene)
        counts = units.group_by("fold").agg(pl.col("unit").n_unique()).sort("unit", "fold", descending=[True, False])
        return of_gene[rows.gene], counts["fold"].to_list()

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
