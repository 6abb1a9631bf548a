"""A student: what its plan takes over from the run that teaches it, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from metabatch.data.roles import Candidate
from metabatch.errors import InputError, UsageError
from metabatch.options import Options
from metabatch.rundir.manifests import ExcludedColumn, Plan, Teacher

# Options that are the teacher's: the same columns and genes always, the others unless given.
_ALWAYS = (
    "group_column", "label_column", "classes", "score_columns", "split_column", "id_columns", "weight_column",
    "exclude_features", "allow_features", "sample_genes", "holdout_fraction", "holdout_chrom",
)  # fmt: skip
UNLESS_GIVEN = (
    "missing_policy", "seed", "n_estimators", "learning_rate", "max_depth", "subsample", "colsample_bytree", "max_bin",
    "n_folds", "early_stopping_patience", "calibration", "prior",
)  # fmt: skip
STRATEGIES = ("auto", "single", "external")
# With half of it a student of the reference shape lost 0.007 AP against its teacher, with nine tenths nothing.
LABEL_SHARE = 0.9
GAIN_SHARE = 0.95
# A student is to be so many times as fast as all members together.
FASTER = 5
# Its trees have so many levels fewer than the teacher's, and at least so many: with depth 4 in the place of 6, the
# students of three ensembles (benchmarks/RESULTS.md, student) had a macro AP 0.016, 0.003 and 0.007 higher.
SHALLOWER, LEAST_DEPTH = 2, 3


@dataclass(frozen=True)
class Student:
    """What a plan needs to know of the teacher.

    plan, genes : of the teacher; genes.parquet as read.
    excluded : columns that are no features of the student, though their type would make them features.
    write_soft_labels : writes soft_labels.parquet at a path, streaming.
    """

    teacher: Teacher
    plan: Plan
    genes: pl.DataFrame
    excluded: Sequence[ExcludedColumn]
    write_soft_labels: Callable[[Path], None]

    def genes_of(self, genes: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, str]:
        """The teacher's genes among `genes` (gene index), those it held out (bool), and how."""
        mine = genes.join(self.genes.select("gene_id", part="split"), on="gene_id", maintain_order="left")
        if mine.height != self.genes.height:
            raise InputError(
                f"the data set has {mine.height:,} of the teacher's {self.genes.height:,} genes",
                where=self.teacher.path,
            )
        how = self.plan.holdout.how
        return (
            mine.drop("part"),
            mine["part"] == "holdout",
            f"{how} (the teacher's)" if self.plan.holdout.genes else how,
        )

    def without_excluded(
        self, candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn]
    ) -> tuple[list[Candidate], list[ExcludedColumn]]:
        """Leave out what the teacher left out (leaks, constants), and what it hardly uses, for these reasons."""
        reasons = {e.name: e for e in self.excluded}
        gone = [reasons[c.name] for c in candidates if c.name in reasons]
        return [c for c in candidates if c.name not in reasons], [*excluded, *gone]

    def warnings(self, options: Options) -> list[str]:
        """What the plan has to say of a student with these options."""
        found = []
        seen = "the teacher's members that teach one gene trained on others of the student's folds"
        if not self.plan.holdout.genes:
            found.append(
                "the teacher held no genes out, so the student has none: its out-of-fold estimate is optimistic, "
                f"because {seen}"
            )
        elif options.n_folds:
            found.append(
                "only the holdout judges the student honestly: its out-of-fold scores are somewhat optimistic, and "
                f"with them calibration, thresholds and the number of trees, because {seen}"
            )
        if not options.n_folds:
            found.append("no cross-validation: the student has as many trees as were asked for")
        return found


def student_options(teacher: Options, members: int, asked: Options, given: Collection[str]) -> Options:
    """Columns and genes of the teacher; its training options too, where none were given (`given`: fields of `asked`).

    One model has room for more trees than a member: of many members, as many as leave it `FASTER` times as fast; its
    trees are shallower.

    Raises
    ------
    UsageError
        A strategy that makes several models.
    """
    if asked.strategy not in STRATEGIES:
        raise UsageError(
            f"--strategy {asked.strategy} is not for a student", expected=f"one of {', '.join(STRATEGIES)}"
        )
    taken = (*_ALWAYS, *(name for name in UNLESS_GIVEN if name not in given))
    options = msgspec.structs.replace(asked, **{name: getattr(teacher, name) for name in taken})
    own = {
        "n_estimators": max(teacher.n_estimators, members * teacher.n_estimators // FASTER),
        "max_depth": min(teacher.max_depth, max(teacher.max_depth - SHALLOWER, LEAST_DEPTH)),
    }
    return msgspec.structs.replace(options, **{name: value for name, value in own.items() if name not in given})
