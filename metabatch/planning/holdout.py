"""Which genes are drawn, and which are set aside for the honest evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from metabatch.data.index import class_column
from metabatch.data.partition import partition, seeded_rank, sizes_of, units_of
from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.planning.student import Student
from metabatch.rundir.manifests import Columns
from metabatch.rundir.recipe import Built, set_aside


def planned_genes(
    genes: pl.DataFrame, columns: Columns, options: Options, explicit: Collection[str], student: Student | None,
    dataset: Path, built: Built,
) -> tuple[pl.DataFrame, pl.Series, str]:  # fmt: skip
    """The genes of the plan, which of them are held out (bool), and how.

    The teacher's for a student; else as asked for; else those that the base model was not fitted on, where
    `build-dataset` fitted one; else by default.
    """
    if student is not None:
        return student.genes_of(genes)
    if options.sample_genes is not None:
        genes = draw_sample(genes, columns, options.sample_genes, options.seed)
    if built.holdout and not {"holdout_fraction", "holdout_chrom"} & set(explicit):
        mask = genes["gene_id"].is_in(list(set_aside(dataset)))
        mask, more = _in_whole_groups(genes, mask, columns)
        how = f"not seen by the base model: {built.holdout}{more}"
        return genes, *_checked(genes, mask, how, columns, "more --sample-genes, or build the data set again")
    return genes, *choose_holdout(genes, columns, options)


def fitted_problems(genes: pl.DataFrame, held: pl.Series, dataset: Path, built: Built) -> list[str]:
    """What is to be said where the base model was fitted on genes of the data set."""
    if not built.holdout:
        return []
    found = [
        "the base model was fitted on the training genes: out-of-fold figures, calibration and thresholds rest on "
        "scores that are somewhat too good; the genes it did not see judge honestly"
    ]
    seen = genes.filter(held & ~genes["gene_id"].is_in(list(set_aside(dataset)))).height
    if seen or not held.any():
        which = f"{seen} of {int(held.sum())} holdout genes" if seen else "all genes judged"
        found.append(
            f"{which} helped to fit the base model: figures on them are too good (without --holdout-fraction and "
            "--holdout-chrom the genes it did not see are held out)"
        )
    return found


def draw_sample(genes: pl.DataFrame, columns: Columns, number: int, seed: int) -> pl.DataFrame:
    """`number` complete genes drawn over the whole data set; split groups are taken whole.

    Returns
    -------
    polars.DataFrame
        The chosen rows of `genes`. At most `number` genes; fewer only when whole split groups do not add
        up to it.
    """
    if number > genes.height:
        raise InputError(f"--sample-genes {number}, but the data set has {genes.height} genes")
    units = units_of(genes, len(columns.classes), by_split=columns.split is not None)
    rank = seeded_rank(units["unit"].to_list(), seed)
    chosen: list[str] = []
    for position in rank.argsort():
        members = units["members"][int(position)]
        if len(chosen) + len(members) <= number:
            chosen += members.to_list()
    if len(chosen) < 2:
        raise InputError(
            f"--sample-genes {number} holds fewer than two genes when every {columns.split} is kept whole",
            next_step="ask for more genes",
        )
    return genes.filter(pl.col("gene_id").is_in(chosen))


def choose_holdout(genes: pl.DataFrame, columns: Columns, options: Options) -> tuple[pl.Series, str]:
    """Mark the holdout genes.

    By chromosome when `--holdout-chrom` is given (split groups with a gene there go whole); otherwise
    `--holdout-fraction` of the genes, stratified by genes, rows and rows per class, split groups kept whole.

    Returns
    -------
    mask : polars.Series of bool, shape (genes,)
    how : str
        One sentence for plan.json and the report.
    """
    if options.holdout_chrom:
        mask, how = _by_chromosome(genes, columns, options.holdout_chrom)
    elif options.holdout_fraction == 0:
        return pl.Series([False] * genes.height, dtype=pl.Boolean), "none: evaluation uses out-of-fold scores"
    else:
        units = units_of(genes, len(columns.classes), by_split=columns.split is not None)
        rank = seeded_rank(units["unit"].to_list(), options.seed)
        fraction = options.holdout_fraction
        bins = partition(sizes_of(units, len(columns.classes)), [fraction, 1 - fraction], rank)
        out = units.filter(pl.Series(bins == 0))["members"].explode()
        mask = genes["gene_id"].is_in(out.implode())
        unit = f"in whole {columns.split} groups, " if columns.split else ""
        how = f"{fraction:.0%} of the genes, {unit}stratified by size and classes, seed {options.seed}"
    advice = "change --holdout-fraction, or use --holdout-fraction 0 (out-of-fold evaluation)"
    return _checked(genes, mask, how, columns, advice)


def _checked(genes: pl.DataFrame, mask: pl.Series, how: str, columns: Columns, next_step: str) -> tuple[pl.Series, str]:
    """The holdout, if it leaves something to train on and has something to judge by."""
    held = int(mask.sum())
    if held in (0, genes.height):
        raise InputError(
            f"the holdout would hold {held} of {genes.height} genes",
            expected="at least one gene on either side",
            next_step=next_step,
        )
    for code, name in enumerate(columns.classes):
        if not genes.filter(~mask)[f"n_{code}"].sum():
            raise InputError(
                f"no training row of class {name} is left besides the holdout",
                next_step="change --holdout-fraction or --seed, or use --holdout-fraction 0",
            )
    return mask, how


def _by_chromosome(genes: pl.DataFrame, columns: Columns, chromosomes: Sequence[str]) -> tuple[pl.Series, str]:
    have = set(genes["chrom"].drop_nulls().to_list()) - {""}
    unknown = sorted(set(chromosomes) - have)
    if unknown:
        raise InputError(
            f"--holdout-chrom {', '.join(unknown)}: no such chromosome in the data set",
            expected=f"some of {', '.join(sorted(have)[:30])}" if have else "a column chrom",
        )
    torn = genes.filter(pl.col("chroms") > 1)
    if torn.height:
        raise InputError(
            f"{torn.height} gene(s) lie on more than one chromosome, e.g. {torn['gene_id'][0]}",
            expected="one chromosome per gene, so that --holdout-chrom can set genes aside whole",
            next_step="give such genes a name per chromosome in the data set, or use --holdout-fraction",
        )
    there = genes["chrom"].is_in(list(chromosomes)).fill_null(value=False)
    unplaced = genes["chrom"].null_count()
    how = f"genes on {', '.join(chromosomes)}" + (f"; {unplaced} without a chromosome are not" if unplaced else "")
    mask, more = _in_whole_groups(genes, there, columns)
    return mask, how + more


def _in_whole_groups(genes: pl.DataFrame, mask: pl.Series, columns: Columns) -> tuple[pl.Series, str]:
    """The genes of `mask` and all others of their split groups; how many more these are, in words."""
    if columns.split is None:
        return mask, ""
    whole = genes["split"].is_in(genes.filter(mask)["split"].unique().implode())
    more = int(whole.sum()) - int(mask.sum())
    return whole, f", and {more} gene(s) elsewhere of the same {columns.split}" if more else ""


def training_problems(training: pl.DataFrame, columns: Columns, options: Options) -> list[str]:
    """Refuse what cannot be cross-validated; warn about what is thin."""
    units = units_of(training, len(columns.classes), by_split=columns.split is not None)
    unit = columns.split or columns.group
    if options.n_folds > units.height:
        raise InputError(
            f"--n-folds {options.n_folds}, but only {units.height} {unit} value(s) to train on",
            next_step=f"--n-folds {units.height}" if units.height > 1 else "--n-folds 0 --calibration none",
        )
    found = []
    for code, name in enumerate(columns.classes):
        having = units.filter(pl.col(class_column(code)) > 0).height
        if having == 0 or (options.n_folds and having < 2):
            raise InputError(
                f"class {name} occurs in {having} {unit} value(s) of the training part",
                expected="at least 2, so that it can be learned and checked on a held-out fold",
                next_step="give more data, or leave the class out with --classes",
            )
        if options.n_folds and having < options.n_folds:
            found.append(
                f"class {name} occurs in {having} {unit} values only: some folds have none, their metrics are null"
            )
    return found
