"""oof.parquet: every row of an instance with the scores of models that did not train on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.data.batches import Piece, Reader, RowCount, as_float32, carried
from metabatch.rundir.manifests import Plan
from metabatch.training.crossval import CrossValidation
from metabatch.training.matrix import Rows


class OutOfFoldFile:
    """oof.parquet, written a part of the genes after the other; no file without cross-validation."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path, self._plan = path, plan
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, pieces: Sequence[Piece], rows: Rows, cv: CrossValidation, count: RowCount) -> None:
        """Stream the id and score columns of `pieces` beside the scores (see `out_of_fold_batch`)."""
        columns = self._plan.columns
        names = [columns.group, *columns.ids, *columns.scores.values()]
        start = 0
        for table in Reader(pieces, names, columns.group, count=count):
            end = start + table.num_rows
            part = out_of_fold_batch(table, rows, cv, self._plan, slice(start, end))
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, part.schema, compression="zstd")
            self._writer.write_table(part)
            start = end


def out_of_fold_batch(table: pa.Table, rows: Rows, cv: CrossValidation, plan: Plan, part: slice) -> pa.Table:
    """Out-of-fold rows: gene_id, ids, label, fold, weight, {class}_score (base), {class}_raw, {class}_meta."""
    columns = plan.columns
    names = np.array(rows.genes, dtype=object)[rows.gene[part]]
    data: dict[str, object] = {"gene_id": pa.array(names, pa.string())}
    data |= carried(
        table, {c: columns.carried[c] for c in columns.ids if c not in ("gene_id", "label", "fold", "weight")}
    )
    data["label"] = pa.array(np.array(columns.classes, dtype=object)[rows.label[part]], pa.string())
    data["fold"] = pa.array(cv.fold[part].astype(np.int16))
    data["weight"] = pa.array(rows.weight[part])
    for name, column in columns.scores.items():
        data[f"{name}_score"] = as_float32(table.column(column))
    for code, name in enumerate(columns.classes):
        data[f"{name}_raw"] = pa.array(np.ascontiguousarray(cv.raw[part, code]))
        data[f"{name}_meta"] = pa.array(np.ascontiguousarray(cv.meta[part, code]).astype(np.float32))
    return pa.table(data)
