"""Chosen rows of an instance once more, as the boosters see them: for the analyses after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from metabatch.analysis.sampling import MatrixRows
from metabatch.data.batches import Piece, Reader, RowCount
from metabatch.data.preprocess import Preprocessor
from metabatch.data.shards import open_parquet
from metabatch.errors import InputError
from metabatch.rundir.manifests import Columns
from metabatch.training.matrix import Rows


def matrix_rows(
    pieces: Sequence[Piece], rows: Rows, chosen: np.ndarray, times: np.ndarray, unit: np.ndarray,
    prepare: Preprocessor, columns: Columns, *, chunk: int, count: RowCount, where: str,
) -> Iterator[MatrixRows]:  # fmt: skip
    """Stream the chosen rows, `chunk` at a time (the last time fewer).

    Beside a chunk the decoded row group is held (a part of a large one), and the parts of the next chunk.
    Row groups that hold no chosen row are not decoded, but for the gene column where only some of their genes belong
    to the instance.

    Parameters
    ----------
    pieces : sequence of Piece
        Whose rows, in order, are `rows`.
    chosen : ndarray of int, shape (m,), ascending
        Positions in `rows`.
    times : ndarray of float64, shape (m,)
        Rows that each chosen row stands for.
    unit : ndarray of int, shape (len(rows),)
        Unit of every row.
    count : RowCount
        Receives the rows read; without those of which only the gene was looked at.

    Raises
    ------
    InputError
        The data set has fewer rows than were trained on, or cannot be read.
    """
    names = [f.name for f in prepare.features]
    sizes: dict[Path, list[int]] = {}
    raw: list[pa.Table] = []  # as read, of one schema: preprocessing goes through all columns, so seldom
    parts: list[pa.Table] = []  # preprocessed; several where shards differ
    begin = done = 0  # rows before the table; chosen rows that were taken
    for piece in pieces:
        if done == len(chosen):
            break
        if chosen[done] >= begin + _most_rows(piece, sizes):
            begin += _rows(piece, columns, sizes)
            continue
        for table in Reader([piece], names, columns.group, count=count):
            end = begin + table.num_rows
            upto = int(np.searchsorted(chosen, end))
            while done < upto:
                # Taken before anything else, and copied: no part may hold on to the row group it came from.
                here = chosen[done : min(upto, (done // chunk + 1) * chunk)]
                taken = table.take(pa.array(here - begin))
                if raw and raw[0].schema != taken.schema:
                    parts.append(_prepared(raw, prepare, where))
                raw.append(taken)
                done += len(here)
                if done % chunk == 0 or done == len(chosen):
                    parts.append(_prepared(raw, prepare, where))
                    which = slice(done - sum(p.num_rows for p in parts), done)
                    row = chosen[which]
                    weight = rows.weight[row].astype(np.float64) * times[which]
                    yield MatrixRows(_emptied(parts), rows.label[row], weight, unit[row])
            begin = end
            del table  # before the next one is decoded
    if done < len(chosen):
        raise InputError(
            f"the data set gives {begin:,} rows", expected=f"the {len(rows):,} rows that were trained on", where=where
        )


def _prepared(raw: list[pa.Table], prepare: Preprocessor, where: str) -> pa.Table:
    """Tables of one schema as the boosters see them; the list is emptied."""
    whole = pa.concat_tables(raw)
    raw.clear()
    return prepare.transform(whole, where=where)


def _emptied(parts: list[pa.Table]) -> pa.Table:
    """The parts as one table, every column in one piece from offset 0 (XGBoost ignores an Arrow offset)."""
    whole = pa.concat_tables(parts).combine_chunks()
    parts.clear()
    return whole


def _most_rows(piece: Piece, sizes: dict[Path, list[int]]) -> int:
    """Rows of the row group; `sizes` keeps those of the files seen."""
    if piece.file not in sizes:
        with open_parquet(piece.file) as parquet:
            meta = parquet.metadata
            sizes[piece.file] = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    return sizes[piece.file][piece.row_group]


def _rows(piece: Piece, columns: Columns, sizes: dict[Path, list[int]]) -> int:
    """Rows of the wanted genes in the row group."""
    if piece.genes is None:
        return _most_rows(piece, sizes)
    return sum(table.num_rows for table in Reader([piece], [], columns.group))
