"""The rows that several runs scored, in one order, one run in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from metabatch.analysis.scored import ScoredRows, load_scored, resampling_units
from metabatch.errors import InputError
from metabatch.evaluation.evaluated import Evaluated

# Columns of predictions.parquet by these names are not the data set's own.
_OURS = frozenset(("gene_id", "label", "weight"))


def scored_genes(of: Evaluated) -> pl.Series:
    """The genes in predictions.parquet, sorted."""
    return pl.scan_parquet(of.predictions).select("gene_id").unique().collect()["gene_id"].sort()


def common_genes(runs: Sequence[Evaluated]) -> list[str]:
    """The genes that all runs scored, sorted.

    Raises
    ------
    InputError
        There is none.
    """
    each = [scored_genes(e) for e in runs]
    common = set(each[0]).intersection(*each[1:])
    if not common:
        scored = ", ".join(f"{e.run.root} {len(genes):,}" for e, genes in zip(runs, each, strict=True))
        raise InputError(
            f"no gene was scored by all {len(runs)} runs ({scored}): their holdouts have none in common",
            expected="runs that kept back the same genes, at least in part",
            next_step="plan with the same --seed and --holdout-fraction (or the same --holdout-chrom) for all of them",
        )
    return sorted(common)


def _key_columns(runs: Sequence[Evaluated]) -> list[str]:
    """Columns that tell the rows of a gene apart and that all runs carried; empty: their order must do."""
    kept = [set(pl.scan_parquet(e.predictions).collect_schema().names()) - _OURS for e in runs]
    wanted = [set(e.plan.columns.row_key) for e in runs]
    return [
        c for c in runs[0].plan.columns.row_key if all(c in k and c in w for k, w in zip(kept, wanted, strict=True))
    ]


@dataclass(frozen=True)
class CommonRows:
    """The common rows of the first run, in the order of its file; others are brought into that order.

    rows : with base scores. keys : uint64, shape (n,): see `_keys`.
    """

    first: Evaluated
    genes: list[str]
    key_columns: list[str]
    groups: dict[str, str]
    rows: ScoredRows
    keys: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[Evaluated]) -> CommonRows:
        """The errors are those of `common_genes`."""
        first, genes, columns = runs[0], common_genes(runs), _key_columns(runs)
        groups = resampling_units(first.run, first.plan)
        rows = load_scored(first.predictions, first.plan.columns, groups, genes=genes, only_scores=True)
        keys = _keys(first.predictions, genes, columns)
        return cls(first, genes, columns, groups, rows, keys, np.lexsort((keys, rows.gene)))

    def scores(self, other: Evaluated) -> np.ndarray:
        """The other run's probabilities of the rows, float32, shape (n, k), classes in the first run's order.

        Raises
        ------
        InputError
            It scored other rows of these genes, or with other labels or weights.
        """
        if other is self.first:
            return self.rows.meta
        columns = msgspec.structs.replace(self.first.plan.columns, scores={})
        rows = load_scored(other.predictions, columns, self.groups, genes=self.genes, only_scores=True)
        keys = _keys(other.predictions, self.genes, self.key_columns)
        order = np.lexsort((keys, rows.gene))
        mine = self.rows
        self._same_rows(other, rows, keys, order)
        place = np.empty_like(order)
        place[self.order] = order
        for what, ours, theirs in (("label", mine.label, rows.label), ("weight", mine.weight, rows.weight)):
            differing = np.flatnonzero(ours != theirs[place])
            if len(differing):
                gene = mine.gene_names[mine.gene[differing[0]]]
                raise InputError(
                    f"the {what} of {len(differing):,} rows differs, the first in gene {gene}",
                    expected=f"the same {what}s: both runs are of the same data",
                    where=f"{self.first.predictions} and {other.predictions}",
                    next_step="evaluate both runs again (bin/evaluate RUN --force)",
                )
        return rows.meta[place]

    def _same_rows(self, other: Evaluated, rows: ScoredRows, keys: np.ndarray, order: np.ndarray) -> None:
        mine = self.rows
        counts = [np.bincount(r.gene, minlength=len(self.genes)) for r in (mine, rows)]
        differing = np.flatnonzero(counts[0] != counts[1])
        if not len(differing):
            apart = keys[order] != self.keys[self.order]
            differing = mine.gene[self.order][apart]
        if len(differing):
            gene = int(differing[0])
            raise InputError(
                f"{other.run.root} scored other rows of gene {self.genes[gene]} than {self.first.run.root} "
                f"({counts[1][gene]:,} and {counts[0][gene]:,} rows)",
                expected="the same rows of a gene: both runs are of the same data",
                where=f"{self.first.predictions} and {other.predictions}",
                next_step="evaluate both runs again (bin/evaluate RUN --force)",
            )


def _keys(path: Path, genes: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """What a row is within its gene: a hash of the key columns or, without any, its number in the order of the data.

    `evaluate` writes the rows of a gene in the order of the data set, which is canonical. uint64, shape (n,).
    """
    wanted = pl.Series("gene_id", list(genes), pl.String)
    frame = pl.scan_parquet(path).filter(pl.col("gene_id").is_in(wanted.implode()))
    if columns:
        return frame.select(columns).collect().hash_rows().to_numpy()
    number = pl.int_range(pl.len(), dtype=pl.UInt64).over("gene_id")
    return frame.select("gene_id").collect().select(number.alias("x"))["x"].to_numpy()
