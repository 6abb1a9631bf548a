"""Which column plays which role. Names, labels, coordinates and text never reach the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metabatch.data.schema import ColumnInfo, Dtype, carried_types, is_kmer
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
# What an excluded column is said to be when the user named it.
EXCLUDED = "excluded by --exclude-features"
CHROM_COLUMNS = ("chrom", "chromosome", "seqname")


@dataclass(frozen=True)
class Candidate:
    """A column that may enter the matrix."""

    name: str
    dtype: Dtype
    group: Literal["score", "kmer", "context"]
    absent_from: tuple[str, ...]


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
    row_key: tuple[str, ...] = ()
    if "position" in schema and not schema["position"].absent_from:
        known = [n for n in ("transcript_id", "tx_id") if n in schema and not schema[n].absent_from]
        extra = [n for n in options.id_columns or () if n != "position" and not schema[n].absent_from]
        row_key = tuple(dict.fromkeys((group, *known, *extra, "position")))
    return Columns(
        group=group,
        label=label,
        classes=options.classes,
        scores=_scores(schema, options),
        split=None if split == group else split,
        weight=weight,
        ids=tuple(i for i in ids if i != group),
        chrom=next((c for c in CHROM_COLUMNS if c in schema and not schema[c].absent_from), None),
        row_key=row_key,
        carried=carried_types(schema, tuple(n for n in dict.fromkeys((*ids, *row_key)) if n != group)),
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
        return EXCLUDED
    if name in LABEL_MADE_COLUMNS:
        return "made from the label (--allow-features to keep it)"
    if name in LOCATION_COLUMNS:
        return "genome location: a model would memorise genes (--allow-features to keep it)"
    return None
