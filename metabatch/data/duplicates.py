"""Rows that are there twice, and positions that several genes have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.data.batches import Piece, Reader, as_text, carried
from metabatch.errors import InputError
from metabatch.rundir.manifests import Columns

# Rows compared at once.
_RECHECK_ROWS, _SHARED_ROWS = 2_000_000, 500_000


@dataclass(frozen=True)
class Duplicates:
    """`count` rows equal one before them in the columns `key`, e.g. in `gene`, which lies in the files `names`."""

    count: int
    key: tuple[str, ...]
    gene: str
    names: tuple[str, ...]

    @property
    def found(self) -> str:
        return f"{self.count} duplicate row(s): same {', '.join(self.key)}"

    @property
    def where(self) -> str:
        return f"gene {self.gene}, in {', '.join(self.names)}"

    @property
    def next_step(self) -> str:
        return "remove the duplicates, or name what tells the rows apart with --id-columns"

    def refusal(self) -> InputError:
        return InputError(self.found, expected="every row once", where=self.where, next_step=self.next_step)


def key_frame(batch: pa.Table, columns: Columns) -> pl.DataFrame:
    """What tells the rows of a gene apart, in one type for all shards."""
    types = {c: columns.carried[c] for c in columns.row_key if c != columns.group}
    return pl.DataFrame({f"key_{n}": pl.from_arrow(c) for n, c in carried(batch, types).items()})


def find_duplicates(pieces: pl.DataFrame, files: Sequence[Path], columns: Columns) -> Iterator[Duplicates]:
    """Rows of the same gene with the same key; genes whose pieces overlap are read again to be sure.

    Parameters
    ----------
    pieces : polars.DataFrame
        A row a gene and batch: gene_id, shard, row_group, rows, distinct (keys), low, high (of the last key column).
    """
    if not columns.row_key:
        return
    spread = pieces.filter(pl.len().over("gene_id") > 1).sort("gene_id", "low")
    overlapping = spread.filter(
        (pl.col("low") <= pl.col("high").shift(1).over("gene_id"))
        | (pl.col("high") >= pl.col("low").shift(-1).over("gene_id"))
    )["gene_id"].unique(maintain_order=True)
    double = pieces.filter((pl.col("distinct") < pl.col("rows")) & ~pl.col("gene_id").is_in(overlapping.implode()))
    if double.height:
        count = int((double["rows"] - double["distinct"]).sum())
        yield _duplicates(double["gene_id"][0], count, files, double, columns)
    if overlapping.is_empty():
        return
    suspects = spread.filter(pl.col("gene_id").is_in(overlapping.implode()))
    load = suspects.group_by("gene_id").agg(pl.col("rows").sum()).sort("gene_id")
    chunk = (load["rows"].cum_sum() // _RECHECK_ROWS).alias("chunk")
    for _, part in load.with_columns(chunk).group_by("chunk", maintain_order=True):
        names = pa.array(part["gene_id"].to_list(), pa.string())
        places = (
            suspects.filter(pl.col("gene_id").is_in(part["gene_id"].implode())).select("shard", "row_group").unique()
        )
        where = [Piece(files[s], g, names) for s, g in places.sort("shard", "row_group").iter_rows()]
        rows = pl.concat(
            pl.DataFrame({"gene_id": pl.from_arrow(as_text(t.column(columns.group)))}).with_columns(
                key_frame(t, columns)
            )
            for t in Reader(where, list(columns.row_key), columns.group)
        )
        twice = rows.filter(rows.is_duplicated())
        if twice.height:
            yield _duplicates(twice["gene_id"][0], twice.height - twice.n_unique(), files, suspects, columns)


def _duplicates(gene: str, count: int, files: Sequence[Path], places: pl.DataFrame, columns: Columns) -> Duplicates:
    names = {files[s].name for s in places.filter(pl.col("gene_id") == gene)["shard"]}
    return Duplicates(count, columns.row_key, gene, tuple(sorted(names)))


@dataclass(frozen=True)
class SharedPositions:
    """Places of the genome (chromosome, position, strand where there is one) that rows of several genes have.

    differing : those labelled differently by gene. torn : those whose genes lie in several split groups.
    """

    positions: int
    genes: int
    differing: int
    torn: int
    example: str


def shared_positions(
    genes: pl.DataFrame, spans: pl.DataFrame, pieces_of: Callable[[list[str]], list[Piece]], columns: Columns,
    strand: str | None,
) -> SharedPositions | None:  # fmt: skip
    """Look for positions of several genes among genes whose spans overlap, some loci at a time.

    Parameters
    ----------
    genes, spans : polars.DataFrame
        As in `metabatch.data.index.GeneIndex`.
    pieces_of : callable
        The row groups of some genes.

    Returns
    -------
    SharedPositions or None
        None without a chromosome or a position in numbers.
    """
    position = columns.row_key[-1] if columns.row_key else None
    if columns.chrom is None or position is None or columns.carried[position] == "string":
        return None
    reach = pl.col("high").cum_max().shift(1).over("chrom")
    begins = (pl.col("chrom") != pl.col("chrom").shift(1)) | (pl.col("low") > reach)
    loci = (
        genes.select("gene_id", "rows", "chrom", "split")
        .join(spans, on="gene_id")
        .filter(pl.col("chrom").is_not_null() & pl.col("low").is_finite() & pl.col("high").is_finite())
        .sort("chrom", "low", "gene_id")
        .with_columns(locus=begins.fill_null(value=True).cum_sum())
        .filter(pl.len().over("locus") > 1)
    )
    chunk = (pl.col("rows").cum_sum() // _SHARED_ROWS).max().over("locus").alias("chunk")
    place = [columns.chrom, position, *([] if strand is None else [strand])]
    total, having, differing, torn, example = 0, set[str](), 0, 0, ""
    for _, part in loci.with_columns(chunk).group_by("chunk", maintain_order=True):
        split = part.select("gene_id", "split")
        for rows in _in_windows(part, pieces_of, columns, place, position):
            places = (
                rows.join(split, on="gene_id")
                .group_by(place)
                .agg(pl.col("gene_id").unique().sort(), pl.col("label").n_unique(), pl.col("split").n_unique())
                .filter(pl.col("gene_id").list.len() > 1)
            )
            if places.height:
                total += places.height
                having |= set(places["gene_id"].explode())
                differing += places.filter(pl.col("label") > 1).height
                torn += places.filter(pl.col("split") > 1).height
                example = example or " and ".join(places.sort(place)["gene_id"][0].to_list()[:2])
    return SharedPositions(total, len(having), differing, torn, example)


def _in_windows(
    genes: pl.DataFrame, pieces_of: Callable[[list[str]], list[Piece]], columns: Columns, place: list[str],
    position: str,
) -> Iterator[pl.DataFrame]:  # fmt: skip
    """Rows of `genes` by windows of positions, so many as to be held at once: a locus may be a whole chromosome.

    genes : gene_id, rows, low, high. The rows: gene_id, label and the columns `place`; all of a position together.
    """
    low, high = float(genes["low"].min()), float(genes["high"].max()) + 1  # type: ignore[arg-type]
    edges = np.linspace(low, high, 1 + -(-int(genes["rows"].sum()) // _SHARED_ROWS)).tolist()
    waiting = list(pairwise(edges))[::-1]
    while waiting:
        start, end = waiting.pop()
        here = genes.filter((pl.col("low") < end) & (pl.col("high") >= start))
        wide = end - start > 1
        found = _window(pieces_of(here["gene_id"].to_list()), columns, place, position, (start, end), halve=wide)
        if found is None:  # positions may stand close together
            middle = (start + end) / 2
            waiting += [(middle, end), (start, middle)]
        else:
            yield found


def _window(
    pieces: list[Piece], columns: Columns, place: list[str], position: str, window: tuple[float, float], *, halve: bool
) -> pl.DataFrame | None:
    """The rows in a window; None when there are too many and it can be halved."""
    names = list(dict.fromkeys((columns.group, columns.label, *place)))
    parts, rows = [], 0
    for table in Reader(pieces, names, columns.group):
        part = pl.DataFrame(
            {n: pl.from_arrow(table.column(n) if n == position else as_text(table.column(n))) for n in names}
        ).with_columns(pl.col(position).cast(pl.Float64))
        parts.append(part.filter((pl.col(position) >= window[0]) & (pl.col(position) < window[1])))
        rows += parts[-1].height
        if halve and rows > 2 * _SHARED_ROWS:
            return None
    schema = {n: pl.Float64 if n == position else pl.String for n in names}
    together = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
    return together.rename({columns.group: "gene_id", columns.label: "label"})
