"""bedGraph tracks for genome browsers, made from the finished parquet parts in bounded memory, whatever their order.

The rows are dealt out to windows of the genome, a file each (a distribution sort), windows then taken in order, each in
memory: a first pass counts rows by blocks of positions, so that a window gets about as many rows as any other.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.data.batches import Reader, as_text, whole_files
from metabatch.data.roles import CHROM_COLUMNS
from metabatch.data.schema import BACKWARD, FORWARD, ColumnInfo
from metabatch.errors import InputError
from metabatch.inference.request import Request
from metabatch.inference.writing import as_frame, gzip_file
from metabatch.resources.signals import StopFlag
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.layout import class_stems
from metabatch.rundir.publish import named

log = logging.getLogger(__name__)
# Positions counted together, rows of a window, and most windows (of more rows each, where there are more).
_BLOCK, _WINDOW_ROWS, _MOST_WINDOWS = 1 << 16, 1 << 18, 512
_BATCH_ROWS = 1 << 16
# Value of a strand column -> code; anything else is _UNSTRANDED.
_STRANDS, _UNSTRANDED = dict.fromkeys(FORWARD, 0) | dict.fromkeys(BACKWARD, 1), 2
_STRAND_NAMES = ("plus", "minus", "unstranded")


@dataclass(frozen=True)
class Places:
    """The columns that place a row in the genome, and the number of a chromosome's first position."""

    chrom: str
    position: str
    strand: str | None
    base: int

    @property
    def columns(self) -> list[str]:
        return [c for c in (self.chrom, self.position, self.strand) if c is not None]


def find_places(request: Request, bundle: Bundle, schema: Mapping[str, ColumnInfo]) -> Places:
    """The place columns: as named, else by their usual names.

    Raises
    ------
    InputError
        A column is absent, or positions are no whole numbers.
    """
    usual = [c for c in (bundle.columns.chrom, *CHROM_COLUMNS) if c is not None and c in schema]
    chrom = request.chrom_column or next(iter(usual), "chrom")
    position = request.position_column or "position"
    strand = request.strand_column or ("strand" if "strand" in schema else None)
    for name, option in ((chrom, "--chrom-column"), (position, "--position-column"), (strand, "--strand-column")):
        if name is not None and name not in schema:
            raise InputError(
                f"--format bedgraph: the data has no column {name}",
                expected="the chromosome and position of every row",
                next_step=f"name the column with {option}",
            )
    if schema[position].carried not in ("int64", "uint64"):
        raise InputError(f"column {position} holds {schema[position].arrow_type}", expected="whole numbers (positions)")
    return Places(chrom, position, strand, 1 if request.position_base is None else request.position_base)


def write_tracks(
    parts: Sequence[Path], values: Mapping[str, str], places: Places, folder: Path, scratch: Path, stop: StopFlag
) -> None:
    """Write ``{class}[.plus|.minus|.unstranded].bedgraph.gz`` into `folder`: chrom, start, end, value.

    Intervals are of one position, 0-based, half-open, by chromosome (as bytes) and start. Where several rows stand at
    a position of a strand the highest value counts.

    Parameters
    ----------
    parts : sequence of Path
        Parquet with the columns of `places` and `values`.
    values : mapping of str to str
        class -> column.
    scratch : Path
        An empty folder, for some 20 bytes a row.

    Raises
    ------
    InputError
        A position before the first of its chromosome.
    """
    reader = _Rows(parts, values, places, stop)
    blocks = reader.count()
    if not blocks:
        log.warning("no row has a chromosome and position: the tracks are empty")
    windows = _windows(blocks)
    names = sorted({chrom for chrom, _ in blocks})
    reader.deal(scratch, names, windows)
    strands = _STRAND_NAMES if reader.unstranded else _STRAND_NAMES[:2]
    stems = class_stems(list(values))
    shared = 0
    with contextlib.ExitStack() as stack:
        writers: dict[tuple[int, int], Callable[[pl.DataFrame], None]] = {}
        for code, stem in enumerate(stems):
            for strand, strand_name in enumerate(strands if places.strand else ("",)):
                name = ".".join(p for p in (stem, strand_name, "bedgraph.gz") if p)
                writers[strand, code] = stack.enter_context(gzip_file(folder / name))
        for window in range(1 + max(windows.values(), default=-1)):
            rows = _reduced(scratch / str(window), reader.dtype, stop)
            shared += rows.filter(pl.col("n") > 1).height
            for (strand, code), write in writers.items():
                write(_intervals(rows, strand, f"v{code}", names, places.base))
    if reader.placeless:
        log.warning("%d row(s) have no chromosome or position: they are in no track", reader.placeless)
    log.info("%d position(s) stand in several rows (genes overlap): the highest value is in the tracks", shared)


class _Rows:
    """The rows of the parts as chrom, position, strand (code), v0, v1, …: read twice, in order.

    placeless : rows without chromosome or position. unstranded : rows whose strand is neither.
    """

    def __init__(self, parts: Sequence[Path], values: Mapping[str, str], places: Places, stop: StopFlag) -> None:
        self._parts, self._values, self._places, self._stop = parts, values, places, stop
        self.placeless = self.unstranded = 0
        fields = [("chrom", "<i4"), ("position", "<i8"), ("strand", "<i1")]
        self.dtype = np.dtype([*fields, *((f"v{i}", "<f4") for i in range(len(values)))])

    def count(self) -> Counter[tuple[str, int]]:
        """Rows by chromosome and block of positions."""
        found: Counter[tuple[str, int]] = Counter()
        for table in self._tables(self._places.columns):
            frame = self._placed(table)
            lowest = frame["position"].min()
            if isinstance(lowest, int) and lowest < self._places.base:
                raise InputError(
                    f"column {self._places.position} holds {lowest}",
                    expected=f"positions from {self._places.base}, the first of a chromosome",
                    next_step="--position-base 0" if lowest == 0 else None,
                )
            self.placeless += table.num_rows - frame.height
            self.unstranded += frame.filter(pl.col("strand") == _UNSTRANDED).height
            for chrom, block, rows in frame.group_by("chrom", "block").len().iter_rows():
                found[chrom, block] += rows
        return found

    def deal(self, scratch: Path, names: Sequence[str], windows: Mapping[tuple[str, int], int]) -> None:
        """Write each window's rows into a file of its number."""
        keys = list(windows)
        of_block = pl.DataFrame(
            {
                "chrom": [chrom for chrom, _ in keys],
                "block": [block for _, block in keys],
                "window": list(windows.values()),
            },
            schema={"chrom": pl.String, "block": pl.Int64, "window": pl.Int32},
        )
        ranks = {name: rank for rank, name in enumerate(names)}
        for table in self._tables([*self._places.columns, *self._values.values()]):
            frame = self._placed(table).join(of_block, on=["chrom", "block"], maintain_order="left")
            for (window,), rows in frame.partition_by("window", as_dict=True, maintain_order=True).items():
                records = np.empty(rows.height, dtype=self.dtype)
                records["chrom"] = rows["chrom"].replace_strict(ranks, return_dtype=pl.Int32).to_numpy()
                for name in (self.dtype.names or ())[1:]:
                    records[name] = rows[name].to_numpy()
                path = scratch / str(window)
                with named(path), path.open("ab") as handle:
                    handle.write(records.tobytes())

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        for table in Reader(whole_files(self._parts), columns, self._places.chrom, _BATCH_ROWS):
            self._stop.check()
            yield table

    def _placed(self, table: pa.Table) -> pl.DataFrame:
        """The rows with a place."""
        columns = {"chrom": as_text(table.column(self._places.chrom)), "position": table.column(self._places.position)}
        if self._places.strand is not None:
            columns["strand"] = as_text(table.column(self._places.strand))
        columns |= {
            f"v{i}": table.column(c) for i, c in enumerate(self._values.values()) if c in table.column_names
        }  # fmt: skip
        strand = pl.lit(0) if self._places.strand is None else pl.col("strand").replace_strict(
            _STRANDS, default=_UNSTRANDED)  # fmt: skip
        frame = as_frame(pa.table(columns)).drop_nulls(["chrom", "position"])
        return frame.with_columns(
            pl.col("position").cast(pl.Int64),
            strand.cast(pl.Int8).alias("strand"),
            (pl.col("position").cast(pl.Int64) // _BLOCK).alias("block"),
        )


def _windows(blocks: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """Block -> number of its window, in the order of the genome."""
    most = max(_WINDOW_ROWS, sum(blocks.values()) // (_MOST_WINDOWS // 2))
    found, number, held = {}, 0, 0
    for block in sorted(blocks):
        if held and held + blocks[block] > most:
            number, held = number + 1, 0
        found[block] = number
        held += blocks[block]
    return found


def _reduced(path: Path, dtype: np.dtype, stop: StopFlag) -> pl.DataFrame:
    """One row a position and strand, in order, with the highest values and `n` rows; a piece of the file at a time."""
    names = [n for n in dtype.names or () if n.startswith("v")]
    held: pl.DataFrame | None = None
    with path.open("rb") as handle:
        while raw := handle.read(dtype.itemsize * _WINDOW_ROWS):
            stop.check()
            records = np.frombuffer(raw, dtype=dtype)
            piece = pl.DataFrame({n: np.ascontiguousarray(records[n]) for n in dtype.names or ()})
            piece = piece.with_columns(pl.col(names).fill_nan(None), n=pl.lit(1, dtype=pl.Int64))
            together = piece if held is None else pl.concat([held, piece])
            held = together.group_by("chrom", "position", "strand").agg(pl.col(names).max(), pl.col("n").sum())
    if held is None:
        raise ValueError(f"{path} is empty")
    return held.sort("chrom", "position", "strand")


def _intervals(rows: pl.DataFrame, strand: int, value: str, names: Sequence[str], base: int) -> pl.DataFrame:
    """chrom, start, end, value of the rows of a strand that have a value."""
    start = pl.col("position") - base
    return rows.filter((pl.col("strand") == strand) & pl.col(value).is_not_null()).select(
        pl.col("chrom").replace_strict(dict(enumerate(names)), return_dtype=pl.String),
        start.alias("start"),
        (start + 1).alias("end"),
        value,
    )
