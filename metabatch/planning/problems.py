"""What is wrong, or unusual, with a data set: found by `inspect-dataset`, said with where and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl

from metabatch.data.batches import Reader, as_text, whole_files
from metabatch.data.duplicates import SharedPositions
from metabatch.data.index import MANY_PLACES, GeneIndex, class_column, empty_shards, genes_in_several_shards
from metabatch.data.schema import ColumnInfo, is_kmer
from metabatch.errors import InputError
from metabatch.options import DEFAULT_CLASSES
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.rundir.manifests import Columns
from metabatch.rundir.recipe import AS_LISTED, DATASET_FILE, first_of, read_built, shard_differences

Severity = Literal["error", "warning", "note"]
# Names shown of many.
_NAMED = 6
# A class in fewer rows or genes can hardly be judged.
_FEW_ROWS, _FEW_GENES = 20, 5
# Relative difference of the sum of a gene's weights and its length.
_LENGTH_ERROR = 0.01
# Sites are about 1.6 in 10,000 positions; a table with this share of them has its negatives down-sampled.
_SAMPLED_SHARE = 0.005


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """severity : error (a later command refuses it, or its results are void), warning (look into it), or note."""

    severity: Severity
    what: str
    where: str
    next_step: str


def named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f", … ({len(names):,})" if len(names) > _NAMED else "")


def duplicate_problems(index: GeneIndex, shared: SharedPositions | None, columns: Columns) -> list[Problem]:
    """Rows of the same gene and position, and positions that several genes have."""
    found = [
        Problem(severity="error", what=d.found, where=d.where, next_step=d.next_step) for d in index.duplicates
    ]  # fmt: skip
    if shared is None or not shared.positions:
        return found
    what = f"{shared.positions:,} position(s) are rows of several genes ({shared.genes:,} genes overlap)"
    if shared.differing:
        what += f"; {shared.differing:,} of them with another label in each"
    if columns.split is not None and not shared.torn:
        found.append(
            Problem(
                severity="note", what=what, where=f"e.g. {shared.example}",
                next_step=f"nothing: {columns.split} keeps them together in every split",
            )
        )  # fmt: skip
        return found
    torn = f"; {shared.torn:,} of them in several {columns.split}" if columns.split is not None else ""
    found.append(
        Problem(
            severity="warning", what=what + torn, where=f"e.g. {shared.example}",
            next_step="keep genes that overlap together in splits: a column of loci, with --split-column",
        )
    )  # fmt: skip
    return found


def listed_problems(dataset: Path, files: Sequence[Path]) -> list[Problem]:
    """Shards other than the dataset.json beside them lists, by name and size: their content is not read."""
    try:
        built = read_built(dataset)
    except InputError as error:
        return [Problem(severity="error", what=error.found, where=str(dataset), next_step=error.next_step or "")]
    differences = shard_differences(dataset, built, {f.name: (f.stat().st_size, None) for f in files})
    if not differences:
        return []
    what = f"{len(differences):,} shard(s) are not as {DATASET_FILE} says: {first_of(differences)}"
    return [Problem(severity="error", what=what, where=str(dataset), next_step=AS_LISTED)]


def place_problems(
    index: GeneIndex, files: Sequence[Path], row_groups: Sequence[Sequence[int]], row_bytes: int
) -> list[Problem]:
    """Genes in several shards, or in row groups far from each other; row groups too large; empty shards.

    row_bytes : a decoded row, all columns.
    """
    found = [
        Problem(severity="note", what="the shard is empty", where=name, next_step="take it out of the folder")
        for name in empty_shards(files, row_groups)
    ]
    several = genes_in_several_shards(index.segments)
    if several.height:
        gene, shards = several.row(0)
        found.append(
            Problem(
                severity="warning", what=f"{several.height:,} gene(s) lie in more than one shard",
                where=f"e.g. {gene} in {named(sorted(files[s].name for s in shards))}",
                next_step="their rows are read together; shards of whole genes are read faster, and copied safely",
            )
        )  # fmt: skip
    places = index.segments.group_by("gene_id", "shard").agg(
        pl.col("row_group").min().alias("first"), pl.col("row_group").max().alias("last"), pl.len().alias("groups")
    )
    apart = places.filter(pl.col("last") - pl.col("first") + 1 > pl.col("groups")).sort("gene_id", "shard")
    mean = index.segments.height / index.genes.height
    if apart.height or mean > MANY_PLACES:
        where = f"the rows of a gene lie in {mean:.1f} row groups on average"
        if apart.height:
            gene, shard, first, last, _ = apart.row(0)
            where += f"; e.g. {gene} in row groups {first} to {last} of {files[shard].name}, and not in all between"
        what = (
            f"{apart['gene_id'].n_unique():,} gene(s) lie in row groups apart from each other"
            if apart.height
            else "genes are spread over many row groups"
        )
        found.append(
            Problem(severity="warning", what=what, where=where, next_step="write the table sorted by gene: "
                    "every instance, and the planning, read far more rows than they need")
        )  # fmt: skip
    sizes = [(rows, file.name) for file, groups in zip(files, row_groups, strict=True) for rows in groups]
    large = [(rows, name) for rows, name in sizes if rows > WHOLE_GROUP_ROWS]
    if large:
        rows, name = max(large)
        found.append(
            Problem(
                severity="warning",
                what=f"{len(large):,} of {len(sizes):,} row group(s) have more than {WHOLE_GROUP_ROWS:,} rows, "
                f"up to {rows:,}: {rows * row_bytes / 2**30:.2f} GB when decoded whole",
                where=name,
                next_step="write row groups of 16,000 to 32,000 rows; larger ones are read piece by piece, with a page "
                "of every column in memory, and whole for any gene in them",
            )
        )
    return found


def kmer_problems(schema: Mapping[str, ColumnInfo], files: Sequence[Path]) -> list[Problem]:
    """k-mers and other columns that shards lack, and k-mers that no shard has."""
    found = []
    for file in files:
        absent = [i.name for i in schema.values() if file.name in i.absent_from]
        kmers, others = [n for n in absent if is_kmer(n)], [n for n in absent if not is_kmer(n)]
        if kmers:
            found.append(
                Problem(
                    severity="note", what=f"{len(kmers):,} k-mer column(s) are missing: {named(kmers)}",
                    where=file.name, next_step="nothing, if their counts are 0 there: they count as 0",
                )
            )  # fmt: skip
        if others:
            found.append(
                Problem(
                    severity="warning", what=f"{len(others):,} column(s) are missing: {named(others)}",
                    where=file.name, next_step="write the shard again with them; until then they are missing values",
                )
            )  # fmt: skip
    there = [n.partition("_")[2] for n in schema if is_kmer(n)]
    for size in sorted({len(letters) for letters in there}):
        mine = [letters for letters in there if len(letters) == size and "N" not in letters]
        if mine and len(mine) < 4**size:
            found.append(
                Problem(
                    severity="note", what=f"{4**size - len(mine):,} of the {4**size:,} {size}-mers are no column",
                    where="all shards", next_step="nothing, if they were left out on purpose (prune-features, "
                    "or counts that are 0 everywhere)",
                )
            )  # fmt: skip
    return found


def class_problems(index: GeneIndex, columns: Columns) -> list[Problem]:
    """Classes that are absent or rare, and negatives that were down-sampled without weights."""
    found = []
    total = int(index.genes["rows"].sum())
    for code, name in enumerate(columns.classes):
        count = index.genes[class_column(code)]
        rows, genes = int(count.sum()), int((count > 0).sum())
        if rows < _FEW_ROWS or genes < _FEW_GENES:
            found.append(
                Problem(
                    severity="warning" if rows else "error",
                    what=f"class {name} has {rows:,} row(s) in {genes:,} gene(s)",
                    where=f"column {columns.label}", next_step="more genes, or other --classes",
                )
            )  # fmt: skip
        elif (
            columns.weight is None and columns.classes == DEFAULT_CLASSES and name != "neither"
            and rows / total > _SAMPLED_SHARE
        ):  # fmt: skip
            found.append(
                Problem(
                    severity="note", where=f"column {columns.label}",
                    what=f"{rows / total:.2%} of the rows are {name}, far more than of a genome's positions, and "
                    "nothing weighs them",
                    next_step="a weight column (--weight-column), or --prior, for probabilities at natural prevalence",
                )
            )  # fmt: skip
    return found


def weight_problems(
    index: GeneIndex, schema: Mapping[str, ColumnInfo], files: Sequence[Path], columns: Columns
) -> list[Problem]:
    """Genes whose weights do not add up to their length, where there is a column that says it."""
    length = schema.get("gene_length")
    if columns.weight is None or length is None or length.dtype is None or length.absent_from:
        return []
    lengths: dict[str, float] = {}
    for table in Reader(whole_files(files), ["gene_length"], columns.group, rows_at_once=1 << 17):
        gene, value = (
            pl.Series(pl.from_arrow(c)) for c in (as_text(table.column(columns.group)), table["gene_length"])
        )
        frame = pl.DataFrame({"gene": gene, "length": value.cast(pl.Float64)})
        for name, most in frame.group_by("gene").agg(pl.col("length").max()).drop_nulls().iter_rows():
            lengths[name] = max(most, lengths.get(name, most))
    said = index.genes.select("gene_id", "weight", length=pl.col("gene_id").replace_strict(lengths, default=None))
    off = said.filter((pl.col("weight") / pl.col("length") - 1).abs() > _LENGTH_ERROR).sort("gene_id")
    if off.is_empty():
        return []
    gene, weight, most = off.row(0)
    return [
        Problem(
            severity="warning",
            what=f"in {off.height:,} of {said.height:,} gene(s) the weights do not add up to gene_length",
            where=f"column {columns.weight}, e.g. gene {gene}: {weight:,.1f} against {most:,.0f}",
            next_step="weighted metrics then are not those of all positions: check how the rows were drawn",
        )
    ]  # fmt: skip
