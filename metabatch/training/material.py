"""What the analyses of an instance look at, made when the first of them asks for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xgboost as xgb

from metabatch.analysis.bounds import CHUNK_ROWS
from metabatch.analysis.frame import ImpossibleError
from metabatch.analysis.sampling import MatrixRows, draw_rows
from metabatch.analysis.scored import ScoredRows, load_scored, resampling_units
from metabatch.data.batches import Piece, RowCount
from metabatch.data.preprocess import Preprocessor
from metabatch.models.linear import LinearMember
from metabatch.resources.law import ANALYSED_ROWS
from metabatch.resources.signals import StopFlag
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import FeatureSet, Plan
from metabatch.training.crossval import Fitted
from metabatch.training.instance_rows import matrix_rows
from metabatch.training.matrix import Rows


@dataclass(frozen=True)
class Material:
    """A trained instance, its matrix gone.

    metrics : metrics.json, as read.
    folder : where its files are.
    pieces, fitted : of its genes, or of the first part where they had to be trained in `parts`.
    """

    run: RunDir
    plan: Plan
    index: int
    features: FeatureSet
    folder: Path
    threads: int
    stop: StopFlag
    metrics: dict[str, Any]
    parts: int
    pieces: Sequence[Piece]
    fitted: Fitted
    count: RowCount

    @property
    def rows(self) -> Rows:
        return self.fitted.rows

    @property
    def classes(self) -> tuple[str, ...]:
        return self.plan.columns.classes

    @property
    def part_note(self) -> str:
        """What to say of analyses that look at one model."""
        return f" (part 0 of the {self.parts} in which its genes were trained)" if self.parts > 1 else ""

    @property
    def boosters(self) -> Mapping[str, xgb.Booster]:
        """The final models."""
        member = self.fitted.member
        if isinstance(member, LinearMember):
            raise ImpossibleError("linear models have no trees: their coefficients are in model/linear.parquet")
        return member.boosters

    @functools.cached_property
    def scored(self) -> ScoredRows:
        """The out-of-fold rows, at most `ANALYSED_ROWS` of them."""
        if not self.plan.options.n_folds:
            raise ImpossibleError("there is no cross-validation (--n-folds 0), so no row was scored out of fold")
        groups = resampling_units(self.run, self.plan)
        return load_scored(
            self.folder / "oof.parquet", self.plan.columns, groups, most=ANALYSED_ROWS, seed=self.plan.seed
        )

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """Code of the resampling unit of every matrix row, shape (n,)."""
        groups = resampling_units(self.run, self.plan)
        _, codes = np.unique(np.array([groups[g] for g in self.rows.genes]), return_inverse=True)
        return codes.astype(np.uint32)[self.rows.gene]

    @functools.cached_property
    def prepare(self) -> Preprocessor:
        return Preprocessor(self.features.features)

    def held_out(self, most: int) -> tuple[dict[str, xgb.Booster], MatrixRows] | None:
        """Models of one fold, class -> booster, and up to `most` rows of that fold; None without cross-validation."""
        cv = self.fitted.cv
        if cv is None or not cv.kept:
            return None
        boosters = {
            name: xgb.Booster({"nthread": self.threads}, model_file=bytearray(model))
            for name, (number, model) in cv.kept.items()
            if number == cv.kept_fold
        }
        return boosters, self.drawn(most, cv.fold == cv.kept_fold)

    def draw(self, most: int, among: np.ndarray | None = None) -> Iterator[MatrixRows]:
        """Up to `most` matrix rows, all classes alike, in chunks; only of the rows where `among` is true."""
        here = np.arange(len(self.rows)) if among is None else np.flatnonzero(among)
        drawn, times = draw_rows(self.rows.label[here], most, len(self.classes), self.plan.seed)
        yield from matrix_rows(
            self.pieces, self.rows, here[drawn], times, self.unit, self.prepare, self.plan.columns,
            chunk=CHUNK_ROWS, count=self.count, where=f"instance {self.index}",
        )  # fmt: skip

    def drawn(self, most: int, among: np.ndarray | None = None) -> MatrixRows:
        """The same in one piece; for a few thousand rows."""
        parts = list(self.draw(most, among))
        table = pa.concat_tables([p.table for p in parts]).combine_chunks()
        return MatrixRows(
            table=table,
            label=np.concatenate([p.label for p in parts]),
            weight=np.concatenate([p.weight for p in parts]),
            unit=np.concatenate([p.unit for p in parts]),
        )
