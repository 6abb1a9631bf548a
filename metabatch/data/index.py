"""The gene index: for every gene its rows, class counts and the row groups they lie in.

One streaming pass over the narrow columns (gene, label, split, weight, position); memory grows with the
number of genes and of the row groups each lies in, not of rows. Bad labels, weights, split groups and
duplicate rows are found here, before anything is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from metabatch.data.batches import Piece, Reader, as_text
from metabatch.data.duplicates import Duplicates, find_duplicates, key_frame
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.rundir.manifests import Columns

_FOLD_EVERY = 32
# Row groups that hold a gene's rows, on average: every reader of some genes reads many others.
MANY_PLACES = 4
_PLACE = ("rows", "distinct", "low", "high")


@dataclass(frozen=True)
class GeneIndex:
    """Two small tables.

    genes : gene_id, rows, n_0..n_{K-1} (rows per class), weight, split, chrom (the first), chroms (how many);
        sorted by gene_id.
    segments : gene_id, shard (position in the canonical order), row_group, rows; sorted by shard, row_group, gene_id.
    spans : gene_id, low, high (lowest and highest position; 0 without a position column); sorted by gene_id.
    class_weight : sum of the weights per class; the rows where nothing weighs them.
    duplicates : rows that are there already, when they are not refused.
    """

    genes: pl.DataFrame
    segments: pl.DataFrame
    spans: pl.DataFrame
    class_weight: tuple[float, ...]
    duplicates: tuple[Duplicates, ...]
    warnings: tuple[str, ...]


def class_column(code: int) -> str:
    return f"n_{code}"


def build_index(
    files: Sequence[Path], row_groups: Sequence[Sequence[int]], columns: Columns, *, allow_duplicates: bool = False
) -> GeneIndex:
    """Scan `files` (canonical order; `row_groups`: rows of each of their row groups).

    Raises
    ------
    InputError
        Null gene or label, a label outside the classes, a bad weight, a gene in two split groups,
        duplicate rows.
    """
    roles = (columns.group, columns.label, columns.split, columns.weight, columns.chrom, *columns.row_key)
    wanted = list(dict.fromkeys(c for c in roles if c))
    places: list[pl.DataFrame] = []
    summaries: list[pl.DataFrame] = []
    total = sum(sum(g) for g in row_groups)
    if total == 0:
        raise InputError("the data set has no rows", expected="at least one row", where=str(files[0].parent))
    with Progress("gene index", total, "rows") as progress:
        for shard, (file, groups) in enumerate(zip(files, row_groups, strict=True)):
            for group, rows in enumerate(groups):
                if rows == 0:
                    continue
                for batch in Reader([Piece(file, group, None)], wanted, columns.group, rows_at_once=131_072):
                    summary = _summarise(batch, columns, f"{file.name}, row group {group}")
                    here = summary.select("gene_id", *_PLACE)
                    places.append(here.with_columns(shard=pl.lit(shard, pl.Int32), row_group=pl.lit(group, pl.Int32)))
                    summaries.append(summary.drop(_PLACE[1:]))
                    if len(summaries) == _FOLD_EVERY:
                        summaries = [_fold(summaries)]
                    progress.advance(batch.num_rows)
    pieces = pl.concat(places)
    folded = _fold(summaries)
    genes = _genes(folded, columns)
    duplicates = []
    for found in find_duplicates(pieces, files, columns):
        if not allow_duplicates:
            raise found.refusal()
        duplicates.append(found)
    segments = (
        pieces.group_by("gene_id", "shard", "row_group").agg(pl.col("rows").sum()).sort("shard", "row_group", "gene_id")
    )
    return GeneIndex(
        genes=genes,
        segments=segments,
        spans=pieces.group_by("gene_id").agg(pl.col("low").min(), pl.col("high").max()).sort("gene_id"),
        class_weight=tuple(float(folded[f"w_{i}"].sum()) for i in range(len(columns.classes))),
        duplicates=tuple(duplicates),
        warnings=tuple(_warnings(segments, genes, files, row_groups)),
    )


def _summarise(batch: pa.Table, columns: Columns, where: str) -> pl.DataFrame:
    """One row a gene of the batch."""
    gene, label = as_text(batch.column(columns.group)), as_text(batch.column(columns.label))
    if gene.null_count:
        raise InputError(
            f"{gene.null_count} row(s) have no {columns.group}", where=where, expected="a gene in every row"
        )
    frame = pl.DataFrame({"gene_id": pl.from_arrow(gene), "label": pl.from_arrow(label)})
    unknown = frame.filter(~pl.col("label").is_in(columns.classes).fill_null(value=False))
    if unknown.height:
        odd = unknown["label"].unique().sort().to_list()[:5]
        raise InputError(
            f"{unknown.height} row(s) have a {columns.label} that is no class: {', '.join(map(repr, odd))}",
            expected=f"one of {', '.join(columns.classes)}",
            where=f"{where}, gene {unknown['gene_id'][0]}",
            next_step="correct the labels, or name the classes with --classes",
        )
    weight = pl.lit(1.0, pl.Float64)
    if columns.weight:
        frame = frame.with_columns(pl.Series("weight", pl.from_arrow(batch.column(columns.weight))).cast(pl.Float64))
        bad = frame.filter(pl.col("weight").is_null() | ~pl.col("weight").is_finite() | (pl.col("weight") < 0))
        if bad.height:
            raise InputError(
                f"{bad.height} row(s) have the weight {bad['weight'][0]} in {columns.weight}",
                expected="finite weights >= 0",
                where=f"{where}, gene {bad['gene_id'][0]}",
            )
        weight = pl.col("weight")
    one = pl.lit("", pl.String)
    if columns.split:
        frame = frame.with_columns(pl.Series("split", pl.from_arrow(as_text(batch.column(columns.split)))))
        if frame["split"].null_count():
            raise InputError(f"{frame['split'].null_count()} row(s) have no {columns.split}", where=where)
    if columns.chrom:
        frame = frame.with_columns(pl.Series("chrom", pl.from_arrow(as_text(batch.column(columns.chrom)))))
    keys = key_frame(batch, columns)
    frame = frame.with_columns(keys)
    last = keys.columns[-1] if keys.width else None
    numeric = last is not None and keys[last].dtype.is_numeric()
    aggregates = [
        pl.len().cast(pl.Int64).alias("rows"),
        *((pl.col("label") == c).sum().cast(pl.Int64).alias(class_column(i)) for i, c in enumerate(columns.classes)),
        *(
            (weight.filter(pl.col("label") == c).sum() if columns.weight else (pl.col("label") == c).sum())
            .cast(pl.Float64)
            .alias(f"w_{i}")
            for i, c in enumerate(columns.classes)
        ),
        weight.sum().alias("weight") if columns.weight else pl.len().cast(pl.Float64).alias("weight"),
        (pl.col("split").first() if columns.split else one.first()).alias("split"),
        (pl.col("split").n_unique() if columns.split else pl.lit(1).first()).cast(pl.Int64).alias("splits"),
        (pl.col("chrom").min() if columns.chrom else one.first()).alias("chrom"),
        (pl.col("chrom").drop_nulls().n_unique() if columns.chrom else pl.lit(1).first())
        .cast(pl.Int64)
        .alias("chroms"),
        (pl.struct(keys.columns).n_unique() if keys.width else pl.len()).cast(pl.Int64).alias("distinct"),
        (pl.col(last or "").min() if numeric else pl.lit(0).first()).cast(pl.Float64).alias("low"),
        (pl.col(last or "").max() if numeric else pl.lit(0).first()).cast(pl.Float64).alias("high"),
    ]
    return frame.group_by("gene_id").agg(aggregates).sort("gene_id")


def _fold(summaries: list[pl.DataFrame]) -> pl.DataFrame:
    """Summaries of several batches as one, a row a gene."""
    return (
        pl.concat(summaries)
        .group_by("gene_id")
        .agg(
            pl.col("rows", "weight", "^[nw]_[0-9]+$").sum(),
            pl.col("split").first(),
            pl.max_horizontal(pl.col("split").n_unique(), pl.col("splits").max()).alias("splits"),
            pl.col("chrom").min(),
            pl.max_horizontal(pl.col("chrom").drop_nulls().n_unique(), pl.col("chroms").max()).alias("chroms"),
        )
        .sort("gene_id")
    )


def _genes(folded: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    torn = folded.filter(pl.col("splits") > 1)
    if torn.height:
        raise InputError(
            f"{torn.height} gene(s) lie in more than one {columns.split}, e.g. {torn['gene_id'][0]}",
            expected=f"one {columns.split} per gene, so that splits by it keep genes whole",
        )
    counts = [class_column(i) for i in range(len(columns.classes))]
    return folded.select("gene_id", "rows", *counts, "weight", "split", "chrom", "chroms")


def _warnings(
    segments: pl.DataFrame, genes: pl.DataFrame, files: Sequence[Path], row_groups: Sequence[Sequence[int]]
) -> list[str]:
    found = []
    torn = genes_in_several_shards(segments)
    if torn.height:
        found.append(
            f"{torn.height} gene(s) lie in more than one shard, e.g. {torn['gene_id'][0]}: their rows are read together"
        )
    places = segments.height / genes.height
    if places > MANY_PLACES:
        found.append(
            f"the rows of a gene lie in {places:.0f} row groups on average: every instance, and the planning, read far "
            "more rows than they need (write the table sorted by gene)"
        )
    return found + [f"shard {name} is empty" for name in empty_shards(files, row_groups)]


def genes_in_several_shards(segments: pl.DataFrame) -> pl.DataFrame:
    """gene_id, shards (their numbers, ascending) of genes that lie in more than one; sorted by gene_id."""
    homes = segments.group_by("gene_id").agg(pl.col("shard").unique().sort().alias("shards"))
    return homes.filter(pl.col("shards").list.len() > 1).sort("gene_id")


def empty_shards(files: Sequence[Path], row_groups: Sequence[Sequence[int]]) -> list[str]:
    """Names of files without a row, sorted."""
    return sorted(file.name for file, groups in zip(files, row_groups, strict=True) if sum(groups) == 0)


def pieces_for(segments: pl.DataFrame, genes: Sequence[str], files: Sequence[Path]) -> list[Piece]:
    """The row groups that hold `genes`, in canonical order, with the filter each needs.

    Parameters
    ----------
    segments : polars.DataFrame
        As in `GeneIndex`.
    """
    chosen = pl.Series("gene_id", list(genes), dtype=pl.String)
    marked = segments.with_columns(pl.col("gene_id").is_in(chosen.implode()).alias("wanted"))
    groups = (
        marked.group_by("shard", "row_group", maintain_order=True)
        .agg(pl.col("gene_id").filter(pl.col("wanted")).alias("genes"), pl.col("wanted").all().alias("all"))
        .filter(pl.col("genes").list.len() > 0)
        .sort("shard", "row_group")
    )
    return [
        Piece(files[shard], group, None if whole else pa.array(names, pa.string()))
        for shard, group, names, whole in groups.iter_rows()
    ]


def rows_by_class(genes: pl.DataFrame, classes: Sequence[str]) -> dict[str, int]:
    """Total rows per class name."""
    return {c: int(genes[class_column(i)].sum() or 0) for i, c in enumerate(classes)}
