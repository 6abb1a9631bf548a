"""The combination that `consolidate` chose: how it was learned, and what is kept of that in the ensemble's folder.

combination.json            the rules of cross-fitting, what each method came to, the estimate on training genes
combination_genes.parquet   gene_id, fold: the genes that were learned from, and the rule that was fitted without
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.analysis.comparison import compare
from metabatch.analysis.sampling import draw_units
from metabatch.analysis.scored import ScoredRows, best_thresholds, resampling_units
from metabatch.data.batches import RowCount, as_float32, as_numpy, as_text
from metabatch.data.labels import label_codes
from metabatch.data.shards import verify_unchanged
from metabatch.ensemble.choosing import HonestRows, choose
from metabatch.ensemble.estimator import MetaModel
from metabatch.ensemble.routing import GeneLevels
from metabatch.ensemble.speakers import member_scores, speakers
from metabatch.errors import InputError
from metabatch.models.pooling import gene_level, pool
from metabatch.options import CombineOption
from metabatch.resources.progress import Progress
from metabatch.rundir.bundle import Combination
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan, save
from metabatch.rundir.tables import read_genes, write_table

log = logging.getLogger(__name__)
# Whole genes with at most so many rows are learned from: every member scores them.
COMBINED_ROWS = 100_000
_RESAMPLES = 200
_FILE, _GENES = "combination.json", "combination_genes.parquet"
_FOLDS_SCHEMA = {"gene_id": pl.String, "fold": pl.Int32}


class Learned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """combination.json.

    rule : as in bundle.json. crossed : the same method fitted without each fold of genes.
    judged : a line a method that was tried. estimate : base and meta on the training genes, each by members that did
        not train on it, combined by the rule fitted without it (which of the methods, all of these genes decided); None
        with one member. on : which rows these are. rows_read, rows_asked : decoded, and of the genes drawn.
    """

    format_version: int = 1
    rule: Combination
    crossed: tuple[Combination, ...]
    judged: tuple[dict[str, Any], ...]
    estimate: dict[str, Any] | None
    on: str
    rows_read: int
    rows_asked: int


@dataclass(frozen=True)
class CrossedRules:
    """Which rule combines the scores of a gene honestly. fold : gene_id -> position in `rules`."""

    rules: tuple[Combination, ...]
    fold: dict[str, int]

    def pool(self, proba: np.ndarray, table: pa.Table, genes: Sequence[str], final: Combination) -> np.ndarray:
        """As `pooling.pool`; genes that were learned from by the rule fitted without them, others by `final`.

        table : the rows that `proba`, shape (m, n, k), is of; genes : of each.
        """
        which = np.array([self.fold.get(g, -1) for g in genes])
        found = np.empty(proba.shape[1:])
        for number in np.unique(which):
            here = which == number
            rule = final if number < 0 else self.rules[number]
            level = gene_level(table, rule)
            found[here] = pool(proba[:, here], rule, None if level is None else level[here])
        return found


@dataclass(frozen=True)
class Outcome:
    """What is to be written. genes : gene_id, fold: what was learned from.

    thresholds : class -> threshold of the best F1 on these rows; None where they say nothing of a combination.
    """

    learned: Learned
    genes: pl.DataFrame
    thresholds: dict[str, float] | None


def learn_combination(run: RunDir, plan: Plan, model: MetaModel, asked: CombineOption) -> Outcome:
    """Choose how the members of `model` are combined.

    Raises
    ------
    InputError
        What was asked for cannot be learned here.
    """
    count = RowCount()
    if len(model.members) > 1:
        verify_unchanged(plan.dataset)
    rows = _honest_rows(run, plan, model, count)
    choice = choose(rows, plan.columns.classes, asked, plan.seed, plan.options.prior)
    _, first = np.unique(rows.gene, return_index=True)
    names = [rows.gene_names[g] for g in rows.gene[first]]
    genes = pl.DataFrame({"gene_id": names, "fold": choice.fold[first].astype(np.int32)}, schema=_FOLDS_SCHEMA)
    estimate, thresholds = None, None
    on = "no gene was left out by a member: nothing is known of the members beside their out-of-fold scores"
    if len(rows):
        scored = ScoredRows(
            gene=rows.gene, group=np.unique(rows.group, return_inverse=True)[1], label=rows.label, weight=rows.weight,
            base=rows.base, meta=choice.pooled.astype(np.float32), gene_names=names, of_rows=rows.of_rows,
            of_genes=rows.of_genes,
        )  # fmt: skip
        found = compare(scored, plan, {}, resamples=_RESAMPLES)
        on = f"training genes, {scored.described()}, each scored by the members that did not train on it"
        estimate = {"how": on, "genes": len(names), "rows": len(rows)}
        estimate |= {k: found[k] for k in ("base", "meta", "difference")}
        if choice.judged:
            best = best_thresholds(scored, plan.columns.classes)
            thresholds = {name: t for name, t in best.items() if t is not None}
    log.info("combination: %s rows read for %s asked", f"{count.read:,}", f"{count.asked:,}")
    learned = Learned(
        rule=choice.rule, crossed=choice.crossed, judged=tuple(choice.judged), estimate=estimate, on=on,
        rows_read=count.read, rows_asked=count.asked,
    )  # fmt: skip
    return Outcome(learned, genes.sort("gene_id"), thresholds)


def _honest_rows(run: RunDir, plan: Plan, model: MetaModel, count: RowCount) -> HonestRows:
    """Rows of training genes, whole split groups drawn, that one member at least did not train on.

    Raises
    ------
    InputError
        The data set has other rows of these genes than the plan.
    """
    columns, classes = plan.columns, plan.columns.classes
    units = resampling_units(run, plan)
    may = speakers(run, plan)
    table = read_genes(run).filter(pl.col("split") == "train").select("gene_id", "rows")
    table = table.filter(pl.Series([bool(may[g]) for g in table["gene_id"]], dtype=pl.Boolean))
    table = table.with_columns(unit=pl.Series([units[g] for g in table["gene_id"]], dtype=pl.String)).sort("gene_id")
    sizes = table.group_by("unit").agg(pl.col("rows").sum()).sort("unit")
    drawn = sizes.filter(pl.Series(draw_units(sizes["rows"].to_numpy(), COMBINED_ROWS, plan.seed), dtype=pl.Boolean))
    here = table.join(drawn.select("unit").with_row_index("group"), on="unit").sort("gene_id")
    codes = {gene: code for code, gene in enumerate(here["gene_id"])}
    found: dict[str, list[np.ndarray]] = {n: [] for n in ("proba", "base", "label", "weight", "gene")}
    expected = int(here["rows"].sum())
    levels = GeneLevels(model.feature_names, len(codes))
    with Progress("combination", expected, "rows") as progress:
        for batch, proba in member_scores(run, plan, model, {g: may[g] for g in codes}, count):
            found["proba"].append(proba)
            found["label"].append(label_codes(batch, columns))
            gene = np.array([codes[g] for g in as_text(batch.column(columns.group)).to_pylist()], dtype=np.int64)
            found["gene"].append(gene)
            levels.see(batch, gene)
            weight = as_numpy(batch.column(columns.weight)) if columns.weight else np.ones(batch.num_rows)
            found["weight"].append(weight.astype(np.float32).astype(np.float64))
            base = np.full((batch.num_rows, len(classes)), np.nan, dtype=np.float32)
            for code, name in enumerate(classes):
                if name in columns.scores:
                    base[:, code] = as_numpy(as_float32(batch.column(columns.scores[name])).fill_null(float("nan")))
            found["base"].append(base)
            progress.advance(batch.num_rows)
    if (come := sum(len(part) for part in found["label"])) != expected:
        raise InputError(
            f"the data set has {come:,} rows of {here.height:,} genes", expected=f"{expected:,}, as planned",
            where=plan.dataset.path,
        )  # fmt: skip
    members, k = len(model.members), len(classes)
    empty = {"proba": (members, 0, k), "base": (0, k)}
    joined = {
        n: np.concatenate(parts, axis=1 if n == "proba" else 0) if parts else np.empty(empty.get(n, (0,)))
        for n, parts in found.items()
    }
    gene = joined["gene"].astype(np.int64)
    return HonestRows(
        proba=joined["proba"], base=joined["base"], label=joined["label"].astype(np.int64), weight=joined["weight"],
        gene=gene, group=here["group"].to_numpy()[gene], gene_names=here["gene_id"].to_list(), levels=levels.found(),
        of_rows=int(table["rows"].sum()), of_genes=table.height,
    )  # fmt: skip


def save_combination(folder: Path, found: Outcome) -> None:
    save(folder / _FILE, found.learned)
    write_table(folder / _GENES, found.genes)


def read_combination(folder: Path) -> Learned:
    return msgspec.json.decode((folder / _FILE).read_bytes(), type=Learned)


def crossed_rules(folder: Path) -> CrossedRules:
    """Of an ensemble's folder whose marker was checked."""
    genes = pl.read_parquet(folder / _GENES)
    return CrossedRules(read_combination(folder).crossed, dict(zip(genes["gene_id"], genes["fold"], strict=True)))
