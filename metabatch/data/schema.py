"""The union schema of all shards.

A column may be absent from some shards (a rare k-mer) or have another numeric width; a column that
is numeric here and text there is an error.
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
from metabatch.rundir.manifests import CarriedType

# Wide k-mers can be hashed: 6-mers are 4,096 columns.
WIDE_BASES = 6
_KMER = re.compile(r"^(\d{1,2})mer_([ACGTN]+)$")
# How strand columns say forward and backward.
FORWARD, BACKWARD = ("+", "1", "+1"), ("-", "-1")

Dtype = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]


@dataclass(frozen=True)
class ColumnInfo:
    """A column over all shards: its matrix dtype (None: not a number) and the shards that lack it.

    carried : the type that holds its values of every shard in an output; None for lists and the like.
    """

    name: str
    dtype: Dtype | None
    carried: CarriedType | None
    arrow_type: str
    absent_from: tuple[str, ...]


def is_kmer(name: str) -> bool:
    """Whether `name` is a k-mer count column, e.g. ``3mer_ACG`` (k must match the letters)."""
    return kmer_bases(name) > 0


def kmer_bases(name: str) -> int:
    """k of a k-mer count column; 0 of any other."""
    match = _KMER.match(name)
    return len(match[2]) if match is not None and int(match[1]) == len(match[2]) else 0


def wide_kmers(names: Sequence[str]) -> list[str]:
    """Those of `names` that are k-mers of `WIDE_BASES` or more."""
    return [name for name in names if kmer_bases(name) >= WIDE_BASES]


def union_schema(files: Sequence[Path]) -> dict[str, ColumnInfo]:
    """The columns of all files in order of name, with the numeric type that holds them all.

    Raises
    ------
    InputError
        A column stored as numbers in one shard and as something else in another; a name used twice.
    """
    schemas = {}
    for file in files:
        with open_parquet(file) as parquet:
            schemas[file.name] = parquet.schema_arrow
    return united(schemas)


def united(schemas: Mapping[str, pa.Schema]) -> dict[str, ColumnInfo]:
    """As `union_schema`, of schemas by the names of their files."""
    types: dict[str, dict[str, pa.DataType]] = {}
    for file, schema in schemas.items():
        if len(set(schema.names)) != len(schema.names):
            twice = sorted({n for n in schema.names if schema.names.count(n) > 1})
            raise InputError(f"column name used twice: {', '.join(twice)}", where=file)
        for field in schema:
            types.setdefault(field.name, {})[file] = field.type
    result = {}
    for name in sorted(types):
        absent = tuple(file for file in schemas if file not in types[name])
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
        result[name] = ColumnInfo(
            name, dtype, _carried_type(list(here.values())), str(next(iter(here.values()))), absent
        )
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


def _carried_type(kinds: Sequence[pa.DataType]) -> CarriedType | None:
    if any(pa.types.is_nested(k) for k in kinds):
        return None
    if all(pa.types.is_integer(k) for k in kinds):
        if pa.uint64() not in kinds:
            return "int64"
        return "uint64" if all(pa.types.is_unsigned_integer(k) for k in kinds) else "string"
    if all(pa.types.is_integer(k) or pa.types.is_floating(k) for k in kinds):
        return "double"
    return "string"


def carried_types(schema: Mapping[str, ColumnInfo], names: Sequence[str]) -> dict[str, CarriedType]:
    """The output type of each of `names` that the data has.

    Raises
    ------
    InputError
        A column of lists or structs.
    """
    found: dict[str, CarriedType] = {}
    for name in names:
        if name in schema:
            kind = schema[name].carried
            if kind is None:
                raise InputError(
                    f"column {name} holds {schema[name].arrow_type}", expected="one number or text per row in an id"
                )
            found[name] = kind
    return found


def _widest(dtypes: Sequence[Dtype]) -> Dtype:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    if "float32" in kinds or "uint32" in kinds:
        return "float32" if "float32" in kinds or kinds - {"uint8", "uint16", "uint32"} else "uint32"
    if kinds <= {"uint8", "uint16"}:
        return "uint16"
    return "int16" if kinds <= {"uint8", "int8", "int16"} else "int32"
