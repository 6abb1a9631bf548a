"""The data set as pruning sees it: which columns may go, which stay whatever they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metabatch.data.roles import EXCLUDED, Candidate, classify, resolve_columns
from metabatch.data.schema import union_schema
from metabatch.data.shards import find_parquet, open_parquet, scan_shards
from metabatch.errors import InputError, UsageError
from metabatch.options import Options
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.rundir.manifests import Columns, Shard

# Of a column that is read piece by piece: its page and its dictionary, as writers make them.
_PAGE_BYTES = 2 << 20
# Columns decoded together.
BLOCK_BYTES = 48 << 20


@dataclass(frozen=True)
class Table:
    """A data set to prune.

    files, shards : in canonical order (by content). order : all columns, as they first appear in it.
    features : number columns that are looked at, in that order; protected ones among them are compared with only.
    protected : column -> why it is kept. excluded : columns that the user wants dropped.
    """

    files: tuple[Path, ...]
    shards: tuple[Shard, ...]
    columns: Columns
    order: tuple[str, ...]
    features: tuple[Candidate, ...]
    protected: dict[str, str]
    excluded: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.shards)


def look_at(path: str, options: Options, keep: Sequence[str]) -> Table:
    """Read the footers of the data set at `path`, hash its shards, and decide which columns may go.

    Raises
    ------
    InputError
        No data, unusable shards or columns, a text column nobody accounted for, a kept name that does not exist.
    UsageError
        A column that is to be kept and left out.
    """
    shards = scan_shards(path)
    by_name = {f.name: f for f in find_parquet(path)}
    files = tuple(by_name[s.name] for s in shards)
    schema = union_schema(files)
    for name in keep:
        if name not in schema:
            raise InputError(f"no column {name} in the data set", expected="names of columns", where="--keep")
        if name in options.exclude_features:
            raise UsageError(f"{name} stands in both --keep and --exclude-features")
    columns = resolve_columns(schema, options)
    # A column without any value in any shard has no type; it is a feature that may go. Kept text is none.
    usable = {
        name: replace(info, dtype="float32") if info.arrow_type == "null" else info
        for name, info in schema.items()
        if name not in keep or info.dtype is not None
    }
    found, out = classify(usable, columns, options)
    reasons = {e.name: e.reason for e in out} | dict.fromkeys(columns.scores.values(), "base score")
    for name in options.exclude_features:
        if reasons[name] != EXCLUDED:
            raise UsageError(f"--exclude-features {name}: {reasons[name]}, which is kept", expected="feature columns")
    protected = {n: r for n, r in reasons.items() if r != EXCLUDED} | dict.fromkeys(keep, "named by --keep")
    order = _order(files)
    place = {name: number for number, name in enumerate(order)}
    return Table(
        files=files,
        shards=tuple(shards),
        columns=columns,
        order=order,
        features=tuple(sorted(found, key=lambda c: place[c.name])),
        protected=dict(sorted(protected.items())),
        excluded=tuple(sorted(options.exclude_features)),
    )


def _order(files: Sequence[Path]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for file in files:
        with open_parquet(file) as parquet:
            names |= dict.fromkeys(parquet.schema_arrow.names)
    return tuple(names)


def blocks(cells: Mapping[str, int], names: Iterable[str], rows: int) -> list[list[str]]:
    """`names` that are in `cells` (see `cell_bytes`) in blocks: a row group of `rows` rows takes `BLOCK_BYTES` each."""
    found: list[list[str]] = []
    room = 0
    for name in names:
        if name not in cells:
            continue
        takes = min(rows * cells[name], max(WHOLE_GROUP_ROWS * cells[name], _PAGE_BYTES))
        if not found or takes > room:
            found.append([])
            room = BLOCK_BYTES
        found[-1].append(name)
        room -= takes
    return found
