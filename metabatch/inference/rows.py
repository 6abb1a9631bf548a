"""From the row groups of a part to the rows of the output, in bounded memory.

Where the meta-model is asked for uncertain rows only, the base scores of a row group are read first, and its features
only if it holds such a row. The uncertain rows of several row groups go through the trees together: a batch costs the
same for one row as for a thousand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from metabatch.data.batches import Piece, Reader, ahead
from metabatch.ensemble.estimator import MetaModel
from metabatch.inference.modes import BaseScores, Output
from metabatch.resources.law import JOINED_ROWS

# Rows of a few narrow columns that are read at once, and that wait for the meta-model's answer: some 100 bytes each.
_NARROW_ROWS = 1 << 18
_WAITING_ROWS = 1 << 19


@dataclass(frozen=True)
class Step:
    """Rows of the output that are ready. `rows`: read for them; `asked`: given to the meta-model."""

    table: pa.Table
    rows: int
    asked: int


@dataclass(frozen=True)
class Batch:
    """Rows read. `narrow`: what is written of them, None when nothing is; `features`: for the trees."""

    rows: int
    narrow: pa.Table | None = None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    uncertain: np.ndarray | None = None
    features: pa.Table | None = None

    @property
    def asked(self) -> int:
        """Rows that go to the meta-model."""
        return 0 if self.features is None else self.features.num_rows


def predict_rows(output: Output, estimator: MetaModel | None, pieces: Sequence[Piece], where: str) -> Iterator[Step]:
    """The output of `pieces` (row groups of one file, named `where` in errors), in order.

    Parameters
    ----------
    estimator : MetaModel, optional
        None with `base_only`.
    """
    if output.base is None:
        if estimator is None:
            raise ValueError("nothing to predict with")
        yield from _all_rows(output, estimator, pieces, where)
        return
    features = [] if estimator is None else estimator.feature_names
    yield from predict_batches(output, estimator, _batches(output, output.base, features, pieces, where), where)


def predict_batches(
    output: Output, estimator: MetaModel | None, batches: Iterable[Batch], where: str
) -> Iterator[Step]:
    """The output of `batches`, in order; several of them go through the trees together."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if sum(b.asked for b in held) >= JOINED_ROWS or sum(b.rows for b in held) >= _WAITING_ROWS:
            yield _finished(output, estimator, held, where)
            held = []
    if held:
        yield _finished(output, estimator, held, where)


def _all_rows(output: Output, estimator: MetaModel, pieces: Sequence[Piece], where: str) -> Iterator[Step]:
    group = output.bundle.columns.group
    for table in ahead(iter(Reader(pieces, [*output.narrow, *estimator.feature_names], group))):
        proba = estimator.predict_batch(table, where=where)
        yield Step(output.table(table, {}, None, proba), table.num_rows, table.num_rows)


def _batches(
    output: Output, base: BaseScores, features: Sequence[str], pieces: Sequence[Piece], where: str
) -> Iterator[Batch]:
    """The row groups, with the features of uncertain rows."""
    group = output.bundle.columns.group
    if base.zone is None:
        for table in Reader(pieces, output.narrow, group, _NARROW_ROWS):
            yield _batch(output, base, table, set(), where)
        return
    looked = [_look(base, piece, tables, where) for piece, tables in _scores(base, pieces)]
    for found, run in itertools.groupby(looked, lambda seen: seen.uncertain):
        if not found and output.request.selective:
            yield Batch(sum(seen.rows for seen in run))
        elif found and features:
            for table in ahead(iter(Reader([seen.piece for seen in run], [*output.narrow, *features], group))):
                yield _batch(output, base, table, set(features), where)
        else:
            for table in Reader([seen.piece for seen in run], output.narrow, group, _NARROW_ROWS):
                yield _batch(output, base, table, set(), where)


@dataclass(frozen=True)
class _Seen:
    """A row group of which the base scores were read: its rows, and whether the base model is uncertain of any."""

    piece: Piece
    rows: int
    uncertain: bool


def _scores(base: BaseScores, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Iterator[pa.Table]]]:
    columns = list(base.columns.values())
    return Reader(pieces, columns, columns[0], _NARROW_ROWS).by_piece()


def _look(base: BaseScores, piece: Piece, tables: Iterator[pa.Table], where: str) -> _Seen:
    rows, found = 0, False
    for table in tables:
        rows += table.num_rows
        found = found or bool(np.any(base.uncertain(base.read(table, where))))
    return _Seen(piece, rows, found)


def _batch(output: Output, base: BaseScores, table: pa.Table, features: Set[str], where: str) -> Batch:
    rows, scores = table.num_rows, base.read(table, where)
    uncertain = base.uncertain(scores)
    if uncertain is not None and output.request.selective:
        index = np.flatnonzero(uncertain)
        table, uncertain = table.take(index), uncertain[index]
        scores = {name: values[index] for name, values in scores.items()}
    wanted = None
    if features and uncertain is not None and uncertain.any():
        wanted = table.select([c for c in table.column_names if c in features]).take(np.flatnonzero(uncertain))
    narrow = table.select([c for c in output.narrow if c in table.column_names])
    return Batch(rows, narrow, scores, uncertain, wanted)


def _finished(output: Output, estimator: MetaModel | None, held: Sequence[Batch], where: str) -> Step:
    """Ask the meta-model for all of `held` at once, and give each batch its own."""
    rows, asked = sum(b.rows for b in held), sum(b.asked for b in held)
    proba = np.empty((0, len(output.bundle.columns.classes)))
    if asked and estimator is not None:
        proba = estimator.predict_batch(pa.concat_tables([b.features for b in held if b.asked]), where=where)
    tables, start = [output.schema.empty_table()], 0
    for batch in held:
        if batch.narrow is not None:
            own = proba[start : start + batch.asked] if output.asks else None
            tables.append(output.table(batch.narrow, batch.scores, batch.uncertain, own))
        start += batch.asked
    return Step(pa.concat_tables(tables).combine_chunks(), rows, asked)
