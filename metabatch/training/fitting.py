"""From rows to models: one matrix, cross-validation, final models, ablation while the matrix is there, calibration."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import sklearn
import xgboost as xgb

from metabatch.data.batches import Piece, RowCount
from metabatch.data.hashing import Hasher
from metabatch.data.preprocess import Preprocessor
from metabatch.data.shares import Share
from metabatch.models.calibration import Calibration, Calibrator, prior_ratios
from metabatch.models.linear import LinearMember
from metabatch.models.member import Member
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import Accounts, map_large_blocks, trim_memory
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
from metabatch.training.epochs import cross_validation, final_line, unhashed
from metabatch.training.folds import class_counts, gene_folds
from metabatch.training.incremental import Incremental
from metabatch.training.ladder import Rung
from metabatch.training.matrix import Rows, build_matrix, decoded_passes
from metabatch.training.shuffled import ShuffledRows
from metabatch.training.team import Team, TeamSlot

if TYPE_CHECKING:
    from metabatch.analysis.ablation import Variant


@dataclass(frozen=True)
class Grown:
    """What came of the matrix; as in `Fitted`."""

    cv: CrossValidation | None
    boosters: dict[str, xgb.Booster]
    rounds: dict[str, int]
    variants: Sequence[Variant]


@dataclass(frozen=True)
class Fitter:
    """Fits the genes of an instance, or one part of them after the other; alone, or as a worker of a team."""

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
    team: Team

    def fit(self, number: int, share: Share, rows: Rows) -> Fitted:
        """Part `number` of the genes. `rows`: of all workers; `share`: this one's own; all when it is alone."""
        if self.rung.linear:
            return self._fit_lines(number, share.pieces, rows)
        grown = self.grow(number, share, rows)
        member = Member(grown.boosters, self._calibration(rows, grown.cv))
        # The soft labels have served.
        return Fitted(replace(rows, soft=None), grown.cv, member, grown.rounds, grown.variants)

    def grow(self, number: int, share: Share, rows: Rows) -> Grown:
        """Everything that needs the matrix, which holds this worker's share of the rows."""
        count = RowCount()
        external, missing = self.rung.external, self.features.has_missing
        passes = decoded_passes(external=external, missing=missing)
        with contextlib.ExitStack() as stack:
            with (
                Progress("matrix", passes * len(share), "rows", self._progress_file) as progress,
                self.accounts.phase("matrix") as phase,
            ):

                def on_batch(batch_rows: int) -> None:
                    progress.advance(batch_rows)
                    self.stop.check()

                matrix = stack.enter_context(
                    build_matrix(
                        share.pieces, Preprocessor(self.features.features), self.cuts, self.plan.columns, share.batches,
                        missing=missing, max_bin=self.plan.options.max_bin, threads=self.threads,
                        where=f"instance {self.index}", count=count, on_batch=on_batch,
                        batch_rows=self.rung.batch_rows,
                        page_bytes=self.plan.memory_law.page_bytes(len(share)) if external else None,
                    )
                )  # fmt: skip
                phase.rows_read, phase.rows_asked, phase.passes = count.read, count.asked, passes
            with self.team.connected():
                cv, boosters, rounds = self._boost(number, matrix, rows)
                variants = self._ablation(matrix, rows, cv, sum(rounds.values())) if number == 0 else []
                if self.team.place is not None:
                    peaks = self.team.gathered(self.accounts.peak(external=external))
                    self.accounts.worker_peaks = [round(peak) for peak in peaks]
            del matrix  # its page files go with the stack: let go of them first
        trim_memory()
        return Grown(cv, boosters, rounds, variants)

    @property
    def _progress_file(self) -> Path | None:
        return self.instance.progress if self.team.leads else None

    def _fit_lines(self, number: int, pieces: Sequence[Piece], rows: Rows) -> Fitted:
        """Linear models, out of core."""
        map_large_blocks()  # those of a step stayed in the heap: 1,674 MiB instead of 1,518 on 1,500 genes
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

            names = [f.name for f in self.features.features]
            hasher = Hasher(names, options.hash_kmers) if options.hash_kmers else None
            source = ShuffledRows(
                pieces, Preprocessor(self.features.features), plan.columns.group, f"instance {self.index}", count,
                on_rows, hasher,
            )  # fmt: skip
            params = {
                "model_spec": options.model_spec, "alpha": options.alpha, "batch_size": options.batch_size,
                "epochs": options.epochs, "hash_kmers": options.hash_kmers, "scikit-learn": sklearn.__version__,
            }  # fmt: skip
            slot = self.kept.slot(f"part-{number}.lines", params)
            epochs = Incremental(source, rows, fold, plan, self.index, self.threads, slot).fit()
            phase.rows_read, phase.rows_asked, phase.passes = count.read, count.asked, passes
        cv = None if fold is None else cross_validation(epochs, rows, fold, plan.columns.classes, options.epochs)
        rounds = dict.fromkeys(plan.columns.classes, options.epochs) if cv is None else cv.rounds
        line = final_line(epochs, list(rounds.values()))
        line = line if hasher is None else unhashed(line, hasher)
        trim_memory()
        return Fitted(rows, cv, LinearMember(line, self._calibration(rows, cv)), rounds)

    def _boost(
        self, number: int, matrix: xgb.DMatrix, rows: Rows
    ) -> tuple[CrossValidation | None, dict[str, xgb.Booster], dict[str, int]]:
        plan, options = self.plan, self.plan.options
        classes = plan.columns.classes
        total = len(classes) * options.n_estimators * (options.n_folds + 1)
        with Progress("boosting", total, "rounds", self._progress_file) as progress:
            self.kept.on_restored = progress.advance
            cv: CrossValidation | None = None
            rounds = dict.fromkeys(classes, options.n_estimators)
            if options.n_folds:
                with self.accounts.phase("cross-validation"):
                    fold, widest = self._folds(rows)
                    cv = cross_validate(
                        matrix, rows, fold, plan, self.index, self.threads, progress.advance, progress.skip,
                        self.accounts.note_fold, functools.partial(self._slot, number),
                        team=self.team, prefer=widest,
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
                        soft=rows.soft_of(code), draw=rows.keys, team=self.team,
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
                self.stop.check, self.team,
            )  # fmt: skip

    def _slot(self, part: int, code: int, fold: int | None, params: Mapping[str, object]) -> Slot | TeamSlot:
        """Where a booster is kept: of a part of the genes, a class, and a fold (None: the final model)."""
        what = "final" if fold is None else f"fold-{fold}"
        stem = class_stems(self.plan.columns.classes)[code]
        return self.team.slot(self.kept.slot(f"part-{part}.{stem}.{what}", params))

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
