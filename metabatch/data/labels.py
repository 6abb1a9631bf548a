"""Labels as numbers, the same in every slice of the data."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.data.batches import as_text
from metabatch.errors import InputError
from metabatch.rundir.manifests import Columns


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
