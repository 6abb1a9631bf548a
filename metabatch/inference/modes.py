"""The base model's scores, where it is uncertain, and the columns that each mode writes.

`hybrid` asks the meta-model only where the base model is uncertain: low <= highest site score < high, or a base score
is missing. Scores are compared as float32, as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.data.batches import as_float32, as_numpy, carried
from metabatch.data.schema import ColumnInfo, carried_types
from metabatch.errors import InputError, UsageError
from metabatch.inference.request import Request
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.manifests import CarriedType

_BACKGROUND = "neither"


def site_classes(bundle: Bundle) -> list[str]:
    """The classes but the background: `neither` where there is one, else the first."""
    classes = bundle.columns.classes
    background = _BACKGROUND if _BACKGROUND in classes else classes[0]
    return [c for c in classes if c != background]


@dataclass(frozen=True)
class BaseScores:
    """How a table's base scores are read.

    columns : class -> column. derived : the class whose score is 1 - the sum of the others, if one has no column.
    sites : the classes but the background. zone : where the base model is uncertain; None where that decides nothing.
    """

    columns: Mapping[str, str]
    derived: str | None
    sites: tuple[str, ...]
    zone: tuple[float, float] | None

    def read(self, table: pa.Table, where: str) -> dict[str, np.ndarray]:
        """class -> float32 scores, shape (n,); missing ones NaN, all of a column that the table lacks.

        Raises
        ------
        InputError
            An infinite score.
        """
        scores = {}
        for name, column in self.columns.items():
            if column not in table.column_names:
                scores[name] = np.full(table.num_rows, np.nan, dtype=np.float32)
                continue
            values = as_numpy(pc.fill_null(as_float32(table.column(column)), np.float32("nan")))
            if np.isinf(values).any():
                raise InputError(
                    f"score column {column} holds {int(np.isinf(values).sum())} infinite value(s)",
                    expected="finite numbers, or null / NaN for missing",
                    where=where,
                )
            scores[name] = values
        if self.derived is not None:
            rest = 1 - np.sum([v.astype(np.float64) for v in scores.values()], axis=0)
            scores[self.derived] = np.clip(rest, 0, 1).astype(np.float32)
        return scores

    def uncertain(self, scores: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Which rows the base model is uncertain of, bool, shape (n,); None without a zone."""
        if self.zone is None:
            return None
        low, high = (np.float32(end) for end in self.zone)
        best = np.max([scores[c] for c in self.sites], axis=0)
        missing = np.any([np.isnan(v) for v in scores.values()], axis=0)
        return missing | ((best >= low) & (best < high))


@dataclass(frozen=True)
class Output:
    """What a prediction writes, and what it reads beside the features.

    ids : group and id columns that the data has. further : columns of --columns, in the data's own types.
    scores : class -> base score column of the data. base : None where the base scores decide nothing.
    """

    request: Request
    bundle: Bundle
    ids: Mapping[str, CarriedType]
    further: Mapping[str, pa.DataType]
    scores: Mapping[str, str]
    base: BaseScores | None
    schema: pa.Schema

    @property
    def asks(self) -> bool:
        """Whether the meta-model is asked at all."""
        return self.request.mode != "base_only"

    @property
    def narrow(self) -> list[str]:
        """Columns of the data that are read of every row."""
        return list(dict.fromkeys((*self.ids, *self.further, *self.scores.values())))

    def final(self, name: str) -> str:
        """The column with the final score of a class."""
        return f"{name}_{ {'meta_only': 'meta', 'hybrid': 'hybrid', 'base_only': 'score'}[self.request.mode] }"

    def table(
        self, narrow: pa.Table, scores: Mapping[str, np.ndarray], uncertain: np.ndarray | None, proba: np.ndarray | None
    ) -> pa.Table:
        """The rows to be written.

        Parameters
        ----------
        narrow : pyarrow.Table of shape (n, any)
        scores : class -> ndarray of shape (n,)
            As read by `base`; empty without.
        uncertain : ndarray of bool, shape (n,), optional
            Of `hybrid`: the rows the meta-model was asked for.
        proba : ndarray of shape (asked, k), optional
        """
        data: dict[str, object] = dict(carried(narrow, self.ids))
        for name, kind in self.further.items():
            there = name in narrow.column_names
            data[name] = narrow.column(name).cast(kind) if there else pa.nulls(narrow.num_rows, kind)
        for name in self.bundle.columns.classes:
            data[f"{name}_score"] = self._score(narrow, name, scores)
        hybrid = uncertain if self.request.mode == "hybrid" else None
        if hybrid is not None:
            data["uncertain"] = pa.array(hybrid)
        if proba is not None:
            for code, name in enumerate(self.bundle.columns.classes):
                data |= self._meta(name, proba[:, code].astype(np.float32), scores, hybrid)
        return pa.Table.from_arrays([data[name] for name in self.schema.names], schema=self.schema)

    def _score(self, narrow: pa.Table, name: str, scores: Mapping[str, np.ndarray]) -> pa.Array | pa.ChunkedArray:
        column = self.scores.get(name)
        if column in narrow.column_names:
            return as_float32(narrow.column(column))
        if name in scores:
            return pa.array(scores[name], from_pandas=True)  # NaN: one of the others is missing
        return pa.nulls(narrow.num_rows, pa.float32())

    def _meta(
        self, name: str, asked: np.ndarray, scores: Mapping[str, np.ndarray], uncertain: np.ndarray | None
    ) -> dict[str, pa.Array]:
        if uncertain is None:
            found = {f"{name}_meta": pa.array(asked)}
            final = asked
        else:
            meta = np.full(len(uncertain), np.nan, dtype=np.float32)
            meta[uncertain] = asked
            final = np.where(uncertain, meta, scores[name])
            found = {f"{name}_meta": pa.array(meta, mask=~uncertain), f"{name}_hybrid": pa.array(final)}
        if name in self.bundle.thresholds:  # of the number as it is written: a reader comes to the same calls
            found[f"{name}_call"] = pa.array(final >= self.bundle.thresholds[name])
        return found


def plan_output(
    bundle: Bundle, schema: Mapping[str, ColumnInfo], further: Mapping[str, pa.DataType], request: Request, where: str
) -> Output:
    """Decide the columns of the output.

    Raises
    ------
    InputError
        The mode or coverage needs base scores that the model or the data does not have.
    UsageError
        A further column has the name of another column of the output.
    """
    columns = bundle.columns
    ids = carried_types(schema, (columns.group, *columns.ids))
    scores = {c: columns.scores[c] for c in columns.classes if c in columns.scores and columns.scores[c] in schema}
    base = None
    if request.zone is not None or request.mode == "base_only":
        base = _base_scores(bundle, schema, request, where)
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in ids.items()]
    fields += [pa.field(name, kind) for name, kind in further.items()]
    shown = columns.classes if request.mode != "meta_only" else tuple(scores)
    fields += [pa.field(f"{name}_score", pa.float32()) for name in shown]
    if request.mode == "hybrid":
        fields.append(pa.field("uncertain", pa.bool_()))
    for name in columns.classes if request.mode != "base_only" else ():
        fields.append(pa.field(f"{name}_meta", pa.float32()))
        if request.mode == "hybrid":
            fields.append(pa.field(f"{name}_hybrid", pa.float32()))
        if name in bundle.thresholds:
            fields.append(pa.field(f"{name}_call", pa.bool_()))
    _check_names([f.name for f in fields], further)
    return Output(request, bundle, ids, further, scores, base, pa.schema(fields))


def _check_names(names: list[str], further: Mapping[str, pa.DataType]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    asked = [n for n in twice if n in further]
    if asked:
        raise UsageError(
            f"--columns {', '.join(asked)}: the output has a column of that name", expected="other columns"
        )
    if twice:
        raise InputError(f"id column {', '.join(twice)} has the name of another column of the output")


def _base_scores(bundle: Bundle, schema: Mapping[str, ColumnInfo], request: Request, where: str) -> BaseScores:
    columns = bundle.columns
    what = f"--mode {request.mode}" if request.mode != "meta_only" else "--coverage selective"
    without = [c for c in columns.classes if c not in columns.scores]
    if len(without) > 1:
        raise InputError(
            f"{what}: the model knows no base score of {', '.join(without)}",
            expected="score columns for all classes but one at most (--score-columns of `plan`)",
            next_step="--mode meta_only --coverage complete",
        )
    for name, column in columns.scores.items():
        if column not in schema:
            raise InputError(
                f"{what}: the data has no column {column}", expected=f"the base score of {name}", where=where
            )
        if schema[column].dtype is None and schema[column].arrow_type != "null":
            raise InputError(f"column {column} holds {schema[column].arrow_type}", expected="numbers", where=where)
    return BaseScores(columns.scores, without[0] if without else None, tuple(site_classes(bundle)), request.zone)
