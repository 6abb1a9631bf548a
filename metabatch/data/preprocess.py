"""The one preprocessing object: raw batch -> matrix batch, the same in training and inference.

Stored as the ordered feature list of the plan and the bundle. What it does per feature: bring to the
planned type, fill an absent k-mer with 0 (its count) and any other absent feature with missing, for
``zero-as-missing`` features mark zeros as missing in the validity bitmap, without copying the values, and for
``sentinel`` features write the sentinel into missing cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metabatch.data.batches import as_numpy, one_chunk
from metabatch.data.schema import is_kmer
from metabatch.errors import InputError
from metabatch.rundir.manifests import Feature

_FORBIDDEN = "[]<"  # XGBoost refuses these in feature names


class Preprocessor:
    """Turns Arrow tables into the table the boosters see.

    Parameters
    ----------
    features : sequence of Feature
        In matrix order.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.matrix_names = _matrix_names([f.name for f in self.features])

    def missing_columns(self, names: Sequence[str]) -> list[str]:
        """Features of the model that are not among `names`."""
        have = set(names)
        return [f.name for f in self.features if f.name not in have]

    def require(self, names: Sequence[str], *, fill_missing_kmers: bool, where: str) -> None:
        """Check that data offers every feature (k-mers may be absent when `fill_missing_kmers`).

        Raises
        ------
        InputError
            Naming the columns.
        """
        missing = self.missing_columns(names)
        kmers = [m for m in missing if is_kmer(m)]
        others = [m for m in missing if not is_kmer(m)]
        if others or (kmers and not fill_missing_kmers):
            listed = ", ".join((others or kmers)[:10]) + (", …" if len(others or kmers) > 10 else "")
            raise InputError(
                f"{len(missing)} feature(s) of the model are not in the data: {listed}",
                expected=f"all {len(self.features)} features the model was trained on",
                where=where,
                next_step="add the columns"
                + (", or use --fill-missing-kmers to count the absent k-mers as 0" if kmers and not others else ""),
            )

    def transform(self, table: pa.Table, *, where: str) -> pa.Table:
        """The matrix batch of `table`: one contiguous column per feature, in order.

        Parameters
        ----------
        table : pyarrow.Table of shape (n, any)
        where : str
            Named in errors.

        Raises
        ------
        InputError
            A value that is infinite (also after conversion to float32) or no number.
        """
        names = set(table.column_names)
        rows = table.num_rows
        arrays = []
        for feature in self.features:
            if feature.name in names:
                arrays.append(_encode(table.column(feature.name), feature, where))
            else:
                arrays.append(_absent(feature, rows))
        return pa.Table.from_arrays(arrays, names=self.matrix_names)


def _matrix_names(names: Sequence[str]) -> list[str]:
    """The features' names, those that XGBoost refuses replaced by ``f0``, ``f1``, … that no other feature has."""
    taken = set(names)
    found = []
    for number, name in enumerate(names):
        usable = name
        if any(c in name for c in _FORBIDDEN):
            usable = f"f{number}"
            while usable in taken:
                usable += "_"
        found.append(usable)
    return found


def _encode(column: pa.ChunkedArray, feature: Feature, where: str) -> pa.Array:
    if column.type == pa.uint8() == _arrow_type(feature) and feature.missing == "native" and not column.null_count:
        return _as_it_is(column)  # counts without gaps, most columns of a table: nothing to do
    valid: np.ndarray | None = None
    if pa.types.is_null(column.type):  # all missing in this shard
        return _missing(feature, len(column))
    if column.null_count:
        valid = as_numpy(pc.is_valid(column))
        column = pc.fill_null(column, pa.scalar(0).cast(column.type))
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    values = as_numpy(column)
    if values.dtype.kind == "f" and feature.dtype != "float32":  # numpy and pandas know no missing integer
        nan = np.isnan(values)
        if nan.any():
            valid = ~nan if valid is None else valid & ~nan
            values = np.where(nan, 0, values)
    if values.dtype.name != feature.dtype:
        values = _convert(values, feature, where)
    if feature.dtype == "float32" and np.isinf(values).any():
        raise InputError(
            f"column {feature.name} holds {int(np.isinf(values).sum())} infinite value(s)",
            expected="finite numbers, or null / NaN for missing",
            where=where,
            next_step="replace them in the data set, or --exclude-features " + feature.name,
        )
    if feature.missing == "zero-as-missing":
        nonzero = values != 0
        valid = nonzero if valid is None else valid & nonzero
    if feature.sentinel is not None:
        gone = np.isnan(values) if valid is None else np.isnan(values) | ~valid
        values, valid = np.where(gone, np.float32(feature.sentinel), values), None
    return _array(np.ascontiguousarray(values), valid, feature)


def _convert(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.number):
        raise InputError(
            f"column {feature.name} holds {values.dtype}", expected=f"{feature.dtype} numbers", where=where
        )
    if feature.dtype == "float32":
        with np.errstate(over="ignore"):  # a value too large becomes inf, which is reported
            return values.astype(np.float32)
    info = np.iinfo(feature.dtype)
    if values.size:
        low, high = values.min(), values.max()
        fractional = np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.trunc(values))
        if not (low >= info.min and high <= info.max) or fractional:
            raise InputError(
                f"column {feature.name} holds values from {low} to {high}",
                expected=f"{feature.dtype}, the type the model was trained on",
                where=where,
            )
    return values.astype(feature.dtype)


def _absent(feature: Feature, rows: int) -> pa.Array:
    if feature.if_absent == "null" or feature.missing == "zero-as-missing":
        return _missing(feature, rows)
    return _array(np.zeros(rows, dtype=feature.dtype), None, feature)


def _missing(feature: Feature, rows: int) -> pa.Array:
    """Missing cells only."""
    if feature.sentinel is not None:
        return _array(np.full(rows, feature.sentinel, dtype=np.float32), None, feature)
    return _array(np.zeros(rows, dtype=feature.dtype), np.zeros(rows, dtype=bool), feature)


def _arrow_type(feature: Feature) -> pa.DataType:
    return pa.from_numpy_dtype(np.dtype(feature.dtype))


def _as_it_is(column: pa.ChunkedArray) -> pa.Array:
    """One byte a value, no gaps, in one piece that begins at offset 0 (see `_array`)."""
    whole = one_chunk(column)
    if whole.offset == 0:
        return whole
    return pa.Array.from_buffers(whole.type, len(whole), [None, whole.buffers()[1].slice(whole.offset, len(whole))])


def _array(values: np.ndarray, valid: np.ndarray | None, feature: Feature) -> pa.Array:
    # Offset 0 and owned buffers on purpose: XGBoost reads the buffers and ignores an Arrow offset.
    mask = None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(_arrow_type(feature), len(values), [mask, pa.py_buffer(values)])
