"""The one quantised matrix of an instance, built by streaming; every class and fold trains on it.

XGBoost passes over the batches several times: for the shape, for the bin of every cell, and in memory once more
for its index by columns. The cuts come from the plan, so there is no pass for the quantile sketch; and where a pass
looks at nothing but the shape, it is given blank rows instead of decoding the table again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import xgboost as xgb

from metabatch.data.batches import Piece, Reader, RowCount, as_numpy, as_text, joined
from metabatch.data.cuts import reference_rows
from metabatch.data.labels import label_codes
from metabatch.data.preprocess import Preprocessor
from metabatch.errors import InputError
from metabatch.resources.usage import trim_memory
from metabatch.rundir.manifests import Columns
from metabatch.rundir.scratch import page_folder, private_folder
from metabatch.training.gradients import RowKeys

log = logging.getLogger(__name__)
type Batch = pa.Table | np.ndarray


@dataclass(frozen=True)
class Rows:
    """What is known of every matrix row besides its features, in matrix order.

    gene, label : unsigned integers, shape (n,): codes into `genes` and the classes.
    weight : float32, shape (n,); ones (that take no memory) when there is no weight column.
    genes : list of str, sorted.
    batches : list of tuples of int; rows of the tables that make each batch of the matrix, as they were read.
    number : uint32, shape (n,); of the row in its gene; None where the rows come from elsewhere than files.
    soft : float32, shape (n, k), in [0, 1]: a student's soft labels, which its boosters are trained on; everything is
        judged by `label`.
    """

    gene: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    genes: list[str]
    batches: list[tuple[int, ...]]
    number: np.ndarray | None = None
    soft: np.ndarray | None = None

    @property
    def keys(self) -> RowKeys | None:
        """What the rows of a tree are drawn by."""
        return None if self.number is None else RowKeys(self.gene, self.number)

    def __len__(self) -> int:
        return len(self.gene)

    def soft_of(self, code: int) -> np.ndarray | None:
        """Soft labels of a class, if there are any."""
        return None if self.soft is None else self.soft[:, code]


def read_rows(
    pieces: Sequence[Piece], genes: Sequence[str], columns: Columns, count: RowCount, batch_rows: int
) -> Rows:
    """Read gene, label and weight of every row, in the order in which the matrix will have them.

    Parameters
    ----------
    genes : sequence of str
        The genes in `pieces`, sorted.
    """
    wanted = [columns.group, columns.label, *([columns.weight] if columns.weight else [])]
    codes = pl.DataFrame({"g": list(genes)}).with_row_index("code")
    narrow = pl.UInt16 if len(genes) <= 2**16 else pl.UInt32
    found, labels, weights, numbers = [], [], [], []
    seen = np.zeros(len(genes), dtype=np.uint32)
    for table in Reader(pieces, wanted, columns.group, batch_rows, count=count):
        gene = pl.Series("g", pl.from_arrow(as_text(table.column(columns.group)))).to_frame()
        here = gene.join(codes, on="g", how="left", maintain_order="left")["code"]
        found.append(here.cast(narrow).to_numpy())
        numbers.append(_numbered(found[-1], seen))
        labels.append(label_codes(table, columns))
        if columns.weight:
            weights.append(as_numpy(table.column(columns.weight)).astype(np.float32))
    if not found:
        raise InputError("none of the planned genes is in the data set")
    gene_codes = np.concatenate(found)
    present = np.unique(gene_codes)
    if len(present) < len(genes):  # the caller compares the ledger with the plan
        gene_codes = np.searchsorted(present, gene_codes).astype(gene_codes.dtype)
    return Rows(
        gene=gene_codes,
        label=np.concatenate(labels),
        weight=np.concatenate(weights) if weights else np.broadcast_to(np.float32(1), len(gene_codes)),
        genes=[genes[i] for i in present],
        batches=joined((len(part) for part in found), batch_rows),
        number=np.concatenate(numbers),
    )


def _numbered(gene: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The number of each row in its gene, uint32; `seen`: rows of each gene so far, which is brought up to date."""
    order = np.argsort(gene, kind="stable")
    own, first, rows = np.unique(gene[order], return_index=True, return_counts=True)
    number = np.empty(len(gene), dtype=np.uint32)
    number[order] = np.arange(len(gene)) + np.repeat(seen[own].astype(np.int64) - first, rows)
    seen[own] += rows.astype(np.uint32)
    return number


class Batches(xgb.DataIter):
    """Hands a batch at a time to XGBoost.

    Parameters
    ----------
    names : sequence of str
        Features, as XGBoost is to know them.
    make : callable
        Starts a pass over the decoded batches.
    blank : callable
        Starts a pass over batches of the same shapes; used for the passes numbered in `shape_passes`.
    """

    def __init__(
        self, names: Sequence[str], make: Callable[[], Iterator[Batch]], blank: Callable[[], Iterator[Batch]],
        shape_passes: frozenset[int], cache_prefix: str | None = None,
    ) -> None:  # fmt: skip
        self._names, self._make, self._blank, self._shape_passes = list(names), make, blank, shape_passes
        self._stream: Iterator[Batch] | None = None
        self._passes = 0
        if cache_prefix is None:
            super().__init__()
        else:
            super().__init__(cache_prefix=cache_prefix, on_host=False)

    def reset(self) -> None:
        self._stream = None

    def next(self, input_data: Callable[..., None]) -> bool:
        if self._stream is None:
            self._passes += 1
            self._stream = self._blank() if self._passes in self._shape_passes else self._make()
        batch = next(self._stream, None)
        if batch is None:
            trim_memory()  # of the batches, before XGBoost makes its index by columns
            return False
        input_data(data=batch, feature_names=self._names)  # labels and weights are in the gradients
        return True


def blank_batches(sizes: Iterable[int], names: Sequence[str], *, missing: bool) -> Iterator[Batch]:
    """Batches of the given rows, all cells 0, that take no memory; with `missing` the first cell of each is null."""
    for rows in sizes:
        if not missing:
            yield np.zeros((rows, len(names)), dtype=np.uint8)  # the kernel gives pages to what is written only
            continue
        zeros = pa.array(np.zeros(rows, dtype=np.uint8))
        gap = pa.array(np.zeros(rows, dtype=np.uint8), mask=np.arange(rows) == 0)
        yield pa.Table.from_arrays([gap, *([zeros] * (len(names) - 1))], names=list(names))


@functools.cache
def shape_passes(*, external: bool, missing: bool) -> frozenset[int]:
    """Numbers of the passes in which this XGBoost looks at shapes only; none where a trial says otherwise.

    In memory: shape, bins, columns; the columns are copied from the bins when nothing is missing. External: shape,
    then bins and columns at once.
    """
    claimed = frozenset({1, 3} if not external and not missing else {1})
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (96, 4)).astype(np.float32)
    if missing:
        values[rng.random(values.shape) < 0.3] = np.nan
    names = list("abcd")
    parts = [
        pa.Table.from_arrays([pa.array(np.ascontiguousarray(c), from_pandas=True) for c in part.T], names=names)
        for part in np.array_split(values, 3)
    ]
    sizes = [t.num_rows for t in parts]
    kind = xgb.ExtMemQuantileDMatrix if external else xgb.QuantileDMatrix
    trees = []
    with private_folder("trial") as folder:
        for number, passes in enumerate((frozenset[int](), claimed)):
            prefix = str(folder / f"trial{number}") if external else None
            batches = Batches(
                names, lambda: iter(parts), lambda: blank_batches(sizes, names, missing=missing), passes, prefix
            )
            cuts = xgb.QuantileDMatrix(np.tile(np.arange(9, dtype=np.float32)[:, None], 4), nthread=1)
            matrix = kind(batches, nthread=1, missing=np.nan, ref=cuts)
            matrix.set_info(label=np.nansum(values, axis=1) > 12)
            booster = xgb.train({"max_depth": 3, "nthread": 1, "tree_method": "hist"}, matrix, 4)
            trees.append((booster.get_dump(with_stats=True), booster.predict(matrix).tobytes()))
            del matrix, batches
    if trees[0] == trees[1]:
        return claimed
    log.warning("xgboost %s reads its batches in another order than known: the matrix is built more slowly",
                xgb.__version__)  # fmt: skip
    return frozenset()


def decoded_passes(*, external: bool, missing: bool) -> int:
    """How often building a matrix reads the data."""
    return (2 if external else 3) - len(shape_passes(external=external, missing=missing))


def _as_one(tables: list[pa.Table]) -> pa.Table:
    """Tables in one, its columns contiguous; the list is emptied, so that the caller holds none of them."""
    whole = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
    tables.clear()
    return whole


@contextlib.contextmanager
def build_matrix(
    pieces: Sequence[Piece], prepare: Preprocessor, cuts: Sequence[np.ndarray], columns: Columns,
    sizes: Sequence[tuple[int, ...]],
    *, missing: bool, max_bin: int, threads: int, where: str, count: RowCount, on_batch: Callable[[int], None],
    batch_rows: int, page_bytes: int | None = None,
) -> Iterator[xgb.QuantileDMatrix | xgb.ExtMemQuantileDMatrix]:  # fmt: skip
    """Build the matrix by streaming batches.

    Parameters
    ----------
    pieces : sequence of Piece
        Row groups to read, in order.
    cuts : sequence of ndarray
        Smallest value of each bin, per feature.
    sizes : sequence of tuples of int
        Rows of the tables of each batch, as `read_rows` met them.
    missing : bool
        Whether the matrix has missing cells.
    where : str
        Named in errors.
    count : RowCount
        Receives the rows read.
    on_batch : callable
        Told the rows of each batch decoded.
    batch_rows : int
        Larger row groups are read in pieces.
    page_bytes : int, optional
        External memory: predicted size of the page files, checked against the free space first. They lie in
        node-local scratch and are removed after. None keeps the matrix in memory.
    """
    features = [f.name for f in prepare.features]

    def tables() -> Iterator[pa.Table]:
        for table in Reader(pieces, features, columns.group, batch_rows, count=count):
            made = prepare.transform(table, where=where)
            del table  # neither may be held while the next one is decoded
            yield made
            del made

    def batches() -> Iterator[Batch]:
        source = tables()
        for size in sizes:
            yield _as_one(list(itertools.islice(source, len(size))))
            on_batch(sum(size))

    def blank() -> Iterator[Batch]:
        return blank_batches([sum(size) for size in sizes], prepare.matrix_names, missing=missing)

    with contextlib.ExitStack() as stack:
        external = page_bytes is not None
        prefix = None if page_bytes is None else str(stack.enter_context(page_folder(page_bytes)) / "pages")
        source = Batches(prepare.matrix_names, batches, blank, shape_passes(external=external, missing=missing), prefix)
        reference = xgb.QuantileDMatrix(reference_rows(cuts), max_bin=max_bin, nthread=threads)
        kind = xgb.ExtMemQuantileDMatrix if external else xgb.QuantileDMatrix
        matrix = kind(source, max_bin=max_bin, nthread=threads, missing=np.nan, ref=reference)
        del reference
        trim_memory()
        yield matrix
        del matrix, source
