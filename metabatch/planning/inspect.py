"""`inspect-dataset`: what is in a data set, from footers and narrow columns."""

from __future__ import annotations

import msgspec

from metabatch.data.index import build_index, rows_by_class
from metabatch.data.roles import classify, resolve_columns
from metabatch.data.schema import is_kmer, union_schema
from metabatch.data.shards import find_parquet, open_parquet
from metabatch.options import Options, validate
from metabatch.planning.memory import largest_group, memory_law
from metabatch.rundir.manifests import Columns, ExcludedColumn, Feature, FeatureSet


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The findings. Sizes in bytes; `memory`: predicted peak per strategy, without a look at the values."""

    path: str
    shards: list[str]
    bytes: int
    genes: int
    positions: int
    features: int
    class_rows: dict[str, int]
    rows_per_gene: dict[str, float]
    columns: Columns
    excluded: list[ExcludedColumn]
    largest_row_group: int
    memory: dict[str, int]
    notes: list[str]


def inspect_dataset(path: str, options: Options) -> Inspection:
    """Read footers, gene, label and weight columns of every shard; never a feature column."""
    validate(options)
    files = find_parquet(path)
    groups, size = [], 0
    for file in files:
        with open_parquet(file) as parquet:
            groups.append(tuple(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))
        size += file.stat().st_size
    schema = union_schema(files)
    columns = resolve_columns(schema, options)
    candidates, excluded = classify(schema, columns, options)
    index = build_index(files, groups, columns)
    rows = index.genes["rows"]
    differing = [i for i in schema.values() if i.absent_from]
    notes = [
        *index.warnings,
        *(
            f"{i.name} is missing from {', '.join(i.absent_from[:4])}{', …' if len(i.absent_from) > 4 else ''}: "
            + ("counts as 0" if is_kmer(i.name) else "counts as missing")
            for i in differing
        ),
    ]
    # Values are not read here: the law for a matrix without missing values, the most usual kind.
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
    instance_rows = round(min(options.genes_per_instance, index.genes.height) * per_gene)
    return Inspection(
        path=str(path),
        shards=[f.name for f in files],
        bytes=size,
        genes=index.genes.height,
        positions=total,
        features=len(candidates),
        class_rows=rows_by_class(index.genes, columns.classes),
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
        notes=notes,
    )
