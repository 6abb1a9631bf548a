"""The union schema of all shards, and which column plays which role.

A column may be absent from some shards (a rare k-mer) or have another numeric width; a column that
is numeric here and text there is an error. Names, labels, coordinates and text never reach the matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from metabatch.data.shards import open_parquet
from metabatch.errors import InputError
from metabatch.options import DEFAULT_SCORES, DEFAULT_SPLIT, DEFAULT_WEIGHT, Options
from metabatch.rundir.manifests import Columns, ExcludedColumn

# Identification of a row or gene: carried to the outputs where present, never a feature.
ID_COLUMNS = (
    "gene_name", "gene_type", "transcript_id", "tx_id", "exon_id", "locus_id",
    "chrom", "chromosome", "seqname", "strand", "position",
)  # fmt: skip
# Where a gene lies: a model that sees it memorises genes (SPEC 9).
LOCATION_COLUMNS = frozenset((
    "start", "end", "gene_start", "gene_end", "tx_start", "tx_end", "transcript_start", "transcript_end",
    "exon_start", "exon_end", "cds_start", "cds_end", "absolute_position", "genomic_position", "pos",
    "gene_index", "transcript_index", "row_id", "index", "__index_level_0__",
))  # fmt: skip
# Made from the label: telling them apart from features needs no statistics.
LABEL_MADE_COLUMNS = frozenset((
    DEFAULT_WEIGHT, "splice_type", "label", "is_splice_site", "true_site", "stratum",
    "n_sites", "n_donor", "n_acceptor",
))  # fmt: skip
CHROM_COLUMNS = ("chrom", "chromosome", "seqname")
_KMER = re.compile(r"^(\d{1,2})mer_([ACGTN]+)$")

Dtype = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]


@dataclass(frozen=True)
class ColumnInfo:
    """A column over all shards: its matrix dtype (None: not a number) and the shards that lack it."""

    name: str
    dtype: Dtype | None
    arrow_type: str
    absent_from: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A column that may enter the matrix."""

    name: str
    dtype: Dtype
    group: Literal["score", "kmer", "context"]
    absent_from: tuple[str, ...]


def is_kmer(name: str) -> bool:
    """Whether `name` is a k-mer count column, e.g. ``3mer_ACG`` (k must match the letters)."""
    match = _KMER.match(name)
    return match is not None and int(match[1]) == len(match[2])


def union_schema(files: Sequence[Path]) -> dict[str, ColumnInfo]:
    """The columns of all files in order of name, with the numeric type that holds them all.

    Raises
    ------
    InputError
        A column stored as numbers in one shard and as something else in another; a name used twice.
    """
    types: dict[str, dict[str, pa.DataType]] = {}
    for file in files:
        with open_parquet(file) as parquet:
            schema = parquet.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            twice = sorted({n for n in schema.names if schema.names.count(n) > 1})
            raise InputError(f"column name used twice: {', '.join(twice)}", where=file.name)
        for field in schema:
            types.setdefault(field.name, {})[file.name] = field.type
    result = {}
    for name in sorted(types):
        absent = tuple(f.name for f in files if f.name not in types[name])
        # A column of type null (all missing in that shard) agrees with any type.
        here = {shard: t for shard, t in types[name].items() if not pa.types.is_null(t)} or types[name]
        dtypes = {shard: _matrix_dtype(t) for shard, t in here.items()}
        numeric = {shard for shard, d in dtypes.items() if d is not None}
        if numeric and len(numeric) < len(here):
            odd = min(set(here) - numeric)
            raise InputError(
                f"column {name} holds {here[odd]} in {odd} and {here[min(numeric)]} in {min(numeric)}",
                expected="the same kind of values in every shard",
                where=f"column {name}",
                next_step=f"write {odd} again with numbers in {name}",
            )
        dtype = _widest([d for d in dtypes.values() if d is not None]) if numeric else None
        result[name] = ColumnInfo(name, dtype, str(next(iter(here.values()))), absent)
    return result


def _matrix_dtype(kind: pa.DataType) -> Dtype | None:
    """The type a column has in the matrix; 64-bit values become float32, as XGBoost stores them."""
    if pa.types.is_boolean(kind):
        return "uint8"
    small = {
        pa.uint8(): "uint8", pa.int8(): "int8", pa.uint16(): "uint16", pa.int16(): "int16",
        pa.uint32(): "uint32", pa.int32(): "int32",
    }  # fmt: skip
    if kind in small:
        return small[kind]  # type: ignore[return-value]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "float32"
    return None


def _widest(dtypes: Sequence[Dtype]) -> Dtype:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    if "float32" in kinds or "uint32" in kinds:
        return "float32" if "float32" in kinds or kinds - {"uint8", "uint16", "uint32"} else "uint32"
    if kinds <= {"uint8", "uint16"}:
        return "uint16"
    return "int16" if kinds <= {"uint8", "int8", "int16"} else "int32"


def resolve_columns(schema: Mapping[str, ColumnInfo], options: Options) -> Columns:
    """Decide group, label, split, weight, id and score columns for this data set.

    Raises
    ------
    InputError
        A named column that is not there (with names that look alike), or cannot play its role.
    """
    group = _require(schema, options.group_column, "--group-column")
    label = _require(schema, options.label_column, "--label-column")
    split = options.split_column
    if split is not None:
        _require(schema, split, "--split-column")
    elif DEFAULT_SPLIT in schema and not schema[DEFAULT_SPLIT].absent_from:
        split = DEFAULT_SPLIT
    weight = options.weight_column
    if weight is not None:
        _require(schema, weight, "--weight-column")
    elif DEFAULT_WEIGHT in schema:
        weight = _require(schema, DEFAULT_WEIGHT, "--weight-column")
    if weight is not None and schema[weight].dtype is None:
        raise InputError(f"weight column {weight} holds {schema[weight].arrow_type}", expected="numbers")
    if options.id_columns is not None:
        ids = tuple(_require(schema, name, "--id-columns") for name in options.id_columns)
    else:
        ids = tuple(n for n in ID_COLUMNS if n in schema and n not in (group, label) and not schema[n].absent_from)
    if options.id_columns is not None:
        row_key: tuple[str, ...] = (group, *(i for i in ids if i != group))
    elif "position" in ids:
        row_key = (group, *(i for i in ("transcript_id", "tx_id", "position") if i in ids))
    else:
        row_key = ()
    return Columns(
        group=group,
        label=label,
        classes=options.classes,
        scores=_scores(schema, options),
        split=None if split == group else split,
        weight=weight,
        ids=tuple(i for i in ids if i != group),
        row_key=row_key,
    )


def _scores(schema: Mapping[str, ColumnInfo], options: Options) -> dict[str, str]:
    asked = options.score_columns
    scores: dict[str, str] = {}
    for entry in DEFAULT_SCORES if asked is None else asked:
        name, _, column = entry.rpartition("=")
        name = name or (column[: -len("_score")] if column.endswith("_score") else "")
        if asked is None and (column not in schema or name not in options.classes):
            continue
        if name not in options.classes:
            raise InputError(
                f"--score-columns {entry} belongs to no class",
                expected=f"CLASS_score or CLASS=COLUMN with CLASS one of {', '.join(options.classes)}",
            )
        _require(schema, column, "--score-columns")
        if schema[column].dtype is None:
            raise InputError(f"score column {column} holds {schema[column].arrow_type}", expected="numbers")
        scores[name] = column
    return {c: scores[c] for c in options.classes if c in scores}


def _require(schema: Mapping[str, ColumnInfo], name: str, option: str) -> str:
    if name not in schema:
        alike = [c for c in schema if name.lower() in c.lower() or c.lower() in name.lower()]
        hint = f" (there is {', '.join(alike[:5])})" if alike else ""
        raise InputError(
            f"no column {name} in the data set{hint}",
            expected=f"the column named by {option}",
            where=f"{len(schema)} columns: {', '.join(list(schema)[:8])}, …",
            next_step=f"give the right name with {option}",
        )
    if schema[name].absent_from:
        missing = schema[name].absent_from
        raise InputError(
            f"column {name} is missing from {len(missing)} shard(s): {', '.join(missing[:5])}",
            expected=f"the column named by {option} in every shard",
        )
    return name


def classify(
    schema: Mapping[str, ColumnInfo], columns: Columns, options: Options
) -> tuple[list[Candidate], list[ExcludedColumn]]:
    """Split the columns into candidates for the matrix and excluded ones with the reason.

    Raises
    ------
    InputError
        A text (or date, list, …) column nobody accounted for; an excluded or allowed name that does
        not exist; no feature left.
    """
    for name in (*options.exclude_features, *options.allow_features):
        if name not in schema:
            raise InputError(
                f"no column {name} in the data set",
                expected="names of columns",
                where="--exclude-features / --allow-features",
            )
    roles = {columns.group: "group column", columns.label: "label column"}
    if columns.split:
        roles.setdefault(columns.split, "split column")
    if columns.weight:
        roles.setdefault(columns.weight, "weight column: it follows the label")
    for name in columns.ids:
        roles.setdefault(name, "id column")
    for name in ID_COLUMNS:
        if name in schema:
            roles.setdefault(name, "identifies a gene or position")
    locked = {columns.group, columns.label, columns.weight, columns.split}
    candidates: list[Candidate] = []
    excluded: list[ExcludedColumn] = []
    for info in schema.values():
        reason = _exclusion(info, roles, options, locked)
        if reason is not None:
            excluded.append(ExcludedColumn(name=info.name, reason=reason))
        elif info.dtype is None:
            raise InputError(
                f"column {info.name} holds {info.arrow_type}, which is no feature",
                expected="numbers, or a column named as id",
                where=f"column {info.name}",
                next_step=f"--exclude-features {info.name}, or --id-columns to carry it to the outputs",
            )
        else:
            score = info.name in columns.scores.values()
            group: Literal["score", "kmer", "context"] = (
                "kmer" if is_kmer(info.name) else "score" if score else "context"
            )
            candidates.append(Candidate(info.name, info.dtype, group, info.absent_from))
    if not candidates:
        raise InputError("no feature column is left", expected="at least one number column besides ids and label")
    return candidates, excluded


def _exclusion(info: ColumnInfo, roles: Mapping[str, str], options: Options, locked: set[str | None]) -> str | None:
    name = info.name
    if name in options.allow_features:
        if name in locked:
            raise InputError(f"--allow-features {name}: it is the {roles[name]}", expected="a feature column")
        if info.dtype is None:
            raise InputError(f"--allow-features {name}: it holds {info.arrow_type}", expected="numbers")
        return None
    if name in roles:
        return roles[name]
    if name in options.exclude_features:
        return "excluded by --exclude-features"
    if name in LABEL_MADE_COLUMNS:
        return "made from the label (--allow-features to keep it)"
    if name in LOCATION_COLUMNS:
        return "genome location: a model would memorise genes (--allow-features to keep it)"
    return None
