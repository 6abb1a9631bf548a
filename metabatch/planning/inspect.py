"""`inspect-dataset`: what is in a data set and what is wrong with it: footers, narrow columns, a gene sample."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from metabatch.data.duplicates import shared_positions
from metabatch.data.index import GeneIndex, build_index, pieces_for, rows_by_class
from metabatch.data.roles import classify, resolve_columns
from metabatch.data.schema import ColumnInfo, union_schema
from metabatch.data.shards import cell_bytes, find_parquet, open_parquet
from metabatch.options import Options, validate
from metabatch.planning.leaks import Leaks, look_for_leaks
from metabatch.planning.memory import largest_group, memory_law
from metabatch.planning.problems import (
    Problem,
    Severity,
    class_problems,
    duplicate_problems,
    kmer_problems,
    listed_problems,
    place_problems,
    weight_problems,
)
from metabatch.rundir.manifests import Columns, ExcludedColumn, Feature, FeatureSet
from metabatch.rundir.publish import sha256_file


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The findings. Sizes in bytes.

    prevalence : class -> share of the rows; weighted_prevalence : of their weights, None without a weight column.
    memory : predicted peak per strategy, without a look at the values. leaks : None when it was not asked for.
    problems : errors first, then warnings, then notes.
    """

    path: str
    shards: list[str]
    bytes: int
    genes: int
    positions: int
    features: int
    class_rows: dict[str, int]
    prevalence: dict[str, float]
    weighted_prevalence: dict[str, float] | None
    rows_per_gene: dict[str, float]
    columns: Columns
    excluded: list[ExcludedColumn]
    largest_row_group: int
    memory: dict[str, int]
    leaks: Leaks | None
    problems: list[Problem]


def inspect_dataset(path: str, options: Options, *, leakage: bool = True) -> Inspection:
    """Read footers, gene, label and weight columns of every shard, and the features of a bounded sample of genes.

    leakage : whether to look for features that give the label away; without, no feature but gene_length is read.

    Raises
    ------
    InputError
        A data set that cannot be read as one: damaged files, absent columns, labels that are no class, bad weights.
    """
    validate(options)
    files = by_content(find_parquet(path))
    groups, size = [], 0
    for file in files:
        with open_parquet(file) as parquet:
            groups.append(tuple(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))
        size += file.stat().st_size
    schema = union_schema(files)
    columns = resolve_columns(schema, options)
    candidates, excluded = classify(schema, columns, options)
    index = build_index(files, groups, columns, allow_duplicates=True)
    rows = index.genes["rows"]
    # Values do not enter here: the law for a matrix without missing values, the most usual kind.
    assumed = FeatureSet(
        features=tuple(
            Feature(name=c.name, dtype=c.dtype, missing="native", if_absent="null", group=c.group) for c in candidates
        ),
        excluded=tuple(excluded),
        densities=(1.0,) * len(candidates),
        bins=(options.max_bin,) * len(candidates),
        has_missing=False,
    )
    law = memory_law(assumed, options, len(columns.classes), largest_group(files, assumed), None)
    total = int(rows.sum())
    per_gene = total / index.genes.height
    leaks = None
    problems = [*listed_problems(Path(path), files), *_problems(index, schema, files, groups, columns)]
    if leakage:
        leaks, more = look_for_leaks(index, files, groups, candidates, columns, options)
        problems += more
    class_rows = rows_by_class(index.genes, columns.classes)
    weight = sum(index.class_weight)
    instance_rows = round(min(options.genes_per_instance, index.genes.height) * per_gene)
    return Inspection(
        path=str(path),
        shards=sorted(f.name for f in files),
        bytes=size,
        genes=index.genes.height,
        positions=total,
        features=len(candidates),
        class_rows=class_rows,
        prevalence={c: n / total for c, n in class_rows.items()},
        weighted_prevalence=None
        if columns.weight is None or not weight
        else {c: w / weight for c, w in zip(columns.classes, index.class_weight, strict=True)},
        rows_per_gene={
            "min": float(rows.min() or 0),  # type: ignore[arg-type]
            "median": float(rows.median() or 0),  # type: ignore[arg-type]
            "mean": per_gene,
            "max": float(rows.max() or 0),  # type: ignore[arg-type]
        },
        columns=columns,
        excluded=sorted(excluded, key=lambda e: e.name),
        largest_row_group=max((r for g in groups for r in g), default=0),
        memory={
            "single": law.in_memory(total, index.genes.height),
            f"multi-instance ({options.genes_per_instance:,} genes each)": law.in_memory(
                instance_rows, min(options.genes_per_instance, index.genes.height)
            ),
            "external": law.external(total),
        },
        leaks=leaks,
        problems=sorted(problems, key=lambda p: get_args(Severity).index(p.severity)),
    )


def by_content(files: Sequence[Path]) -> list[Path]:
    """`files` in an order that their names do not decide: by their footers, and those that are equal by the content.

    `plan` hashes all of every file; here that would take longer than everything else.
    """
    footers = {file: _footer(file) for file in files}
    several = {f for f, n in Counter(footers.values()).items() if n > 1}
    return sorted(files, key=lambda f: (footers[f], sha256_file(f) if footers[f] in several else "", f.name))


def _footer(file: Path) -> bytes:
    """sha256 of the footer: schema, sizes, places and statistics of all columns."""
    with open_parquet(file):  # or an error that names the file
        pass
    with file.open("rb") as handle:
        handle.seek(-8, os.SEEK_END)
        size = int.from_bytes(handle.read(4), "little")
        handle.seek(-8 - size, os.SEEK_END)
        return hashlib.sha256(handle.read(size)).digest()


def _problems(
    index: GeneIndex, schema: Mapping[str, ColumnInfo], files: Sequence[Path], groups: Sequence[Sequence[int]],
    columns: Columns,
) -> list[Problem]:  # fmt: skip
    """What is wrong by footers and narrow columns."""
    strand = "strand" if "strand" in schema and not schema["strand"].absent_from else None
    shared = shared_positions(
        index.genes, index.spans, lambda genes: pieces_for(index.segments, genes, files), columns, strand
    )
    row_bytes = 0
    for file in files:
        with open_parquet(file) as parquet:
            row_bytes = max(row_bytes, sum(cell_bytes(parquet.schema_arrow).values()))
    return [
        *duplicate_problems(index, shared, columns),
        *place_problems(index, files, groups, row_bytes),
        *kmer_problems(schema, sorted(files)),
        *class_problems(index, columns),
        *weight_problems(index, schema, files, columns),
    ]
