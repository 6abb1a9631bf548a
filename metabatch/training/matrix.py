"""The one quantised matrix of an instance, built by streaming; every class and fold trains on it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xgboost as xgb

from metabatch.data.batches import Piece, Reader, RowCount, as_numpy, as_text
from metabatch.data.preprocess import Preprocessor
from metabatch.errors import BudgetError, InputError
from metabatch.resources.usage import trim_memory
from metabatch.rundir.manifests import Columns
from metabatch.rundir.publish import attempt_folder, remove_dead_attempts

_PAGES = "metabatch-pages-"


@dataclass(frozen=True)
class Rows:
    """What is known of every matrix row besides its features, in matrix order.

    gene, label : int32, uint8, shape (n,): codes into `genes` and the classes.
    weight : float32, shape (n,); ones when there is no weight column.
    genes : list of str, sorted.
    """

    gene: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    genes: list[str]

    def __len__(self) -> int:
        return len(self.gene)


def read_rows(pieces: Sequence[Piece], columns: Columns, count: RowCount) -> Rows:
    """Read gene, label and weight of every row, in the order in which the matrix will have them."""
    wanted = [columns.group, columns.label, *([columns.weight] if columns.weight else [])]
    genes, labels, weights = [], [], []
    for table in Reader(pieces, wanted, columns.group, count=count):
        genes.append(pl.Series(pl.from_arrow(as_text(table.column(columns.group)))))
        labels.append(label_codes(table, columns))
        if columns.weight:
            weights.append(as_numpy(table.column(columns.weight)).astype(np.float32))
    if not genes:
        raise InputError("none of the planned genes is in the data set")
    gene = pl.concat(genes)
    names = gene.unique().sort()
    codes = gene.to_frame("g").join(
        names.to_frame("g").with_row_index("code"), on="g", how="left", maintain_order="left"
    )
    return Rows(
        gene=codes["code"].cast(pl.Int32).to_numpy(),
        label=np.concatenate(labels),
        weight=np.concatenate(weights) if weights else np.ones(len(gene), dtype=np.float32),
        genes=names.to_list(),
    )


def label_codes(table: pa.Table, columns: Columns) -> np.ndarray:
    """Class codes, uint8, shape (n,): positions in `columns.classes`, the same in every slice.

    Raises
    ------
    InputError
        A label that is no class.
    """
    text = pl.Series(pl.from_arrow(as_text(table.column(columns.label))))
    codes = text.replace_strict(
        list(columns.classes), list(range(len(columns.classes))), default=None, return_dtype=pl.UInt8
    )
    if codes.null_count():
        odd = text.filter(codes.is_null())[0]
        raise InputError(f"label {odd!r} is no class", expected=", ".join(columns.classes), where=columns.label)
    return codes.to_numpy()


class _Batches(xgb.DataIter):
    def __init__(
        self, open_reader: Callable[[], Reader], prepare: Preprocessor, label: str, on_batch: Callable[[int], None],
        cache_prefix: str | None,
    ) -> None:  # fmt: skip
        self._open, self._prepare, self._label, self._on_batch = open_reader, prepare, label, on_batch
        self._stream: Iterator[pa.Table] | None = None
        if cache_prefix is None:
            super().__init__()
        else:
            super().__init__(cache_prefix=cache_prefix, on_host=False)

    def reset(self) -> None:
        self._stream = None

    def next(self, input_data: Callable[..., None]) -> bool:
        if self._stream is None:
            self._stream = iter(self._open())
        table = next(self._stream, None)
        if table is None:
            return False
        batch = self._prepare.transform(table, where=self._label)
        # A label per row is required to be there; the real ones are set later for each class.
        input_data(data=batch, label=np.zeros(batch.num_rows, dtype=np.float32))
        self._on_batch(batch.num_rows)
        return True


@contextlib.contextmanager
def build_matrix(
    pieces: Sequence[Piece], prepare: Preprocessor, columns: Columns, *, max_bin: int, threads: int, where: str,
    count: RowCount, on_batch: Callable[[int], None], scratch: Path | None = None, page_bytes: int = 0,
) -> Iterator[xgb.QuantileDMatrix | xgb.ExtMemQuantileDMatrix]:  # fmt: skip
    """Build the matrix by streaming batches; with `scratch`, its pages lie on disk there and are removed after.

    Parameters
    ----------
    pieces : sequence of Piece
        Row groups to read, in order.
    where : str
        Named in errors.
    count : RowCount
        Receives the rows read (several passes: sketch, then index).
    on_batch : callable
        Told the rows of each batch.
    scratch : Path, optional
        Folder for the page files of external memory; None keeps the matrix in memory.
    page_bytes : int
        Predicted size of the page files, checked against the free space first.
    """
    features = [f.name for f in prepare.features]

    def open_reader() -> Reader:
        return Reader(pieces, features, columns.group, count=count)

    with contextlib.ExitStack() as stack:
        prefix = None
        if scratch is not None:
            prefix = str(_page_folder(scratch, page_bytes, stack) / "pages")
        batches = _Batches(open_reader, prepare, where, on_batch, prefix)
        kind = xgb.QuantileDMatrix if scratch is None else xgb.ExtMemQuantileDMatrix
        matrix = kind(batches, max_bin=max_bin, nthread=threads, missing=np.nan)
        trim_memory()
        yield matrix
        del matrix, batches


def _page_folder(scratch: Path, page_bytes: int, stack: contextlib.ExitStack) -> Path:
    remove_dead_attempts(scratch, _PAGES)  # before the space is looked at
    free = shutil.disk_usage(scratch).free
    if free < page_bytes:
        raise BudgetError(
            f"external memory needs about {page_bytes / 2**30:.1f} GB in {scratch}, {free / 2**30:.1f} GB are free",
            next_step="point TMPDIR (or SLURM_TMPDIR) to a node-local disk with more space",
        )
    return stack.enter_context(attempt_folder(scratch, _PAGES))
