"""The estimator people load: one model, whatever lies behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.data.preprocess import Preprocessor
from metabatch.errors import UsageError
from metabatch.models.member import Member, MemberInParts
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.rundir.manifests import Bundle


class MetaModel:
    """Mean of the members' calibrated probabilities.

    Parameters
    ----------
    bundle : Bundle
    members : sequence of Member or MemberInParts
    fill_missing_kmers : bool
        Count k-mer columns that the data lacks as 0 instead of refusing.

    Attributes
    ----------
    classes_ : ndarray of str, shape (k,)
        Order of the columns of `predict_proba`.
    feature_names : list of str
        Features in order; for data without column names this is the order expected.
    """

    def __init__(
        self, bundle: Bundle, members: Sequence[Member | MemberInParts], *, fill_missing_kmers: bool = False
    ) -> None:
        self.bundle = bundle
        self.members = list(members)
        self.fill_missing_kmers = fill_missing_kmers
        self.preprocessor = Preprocessor(bundle.features)
        self.classes_ = np.array(bundle.columns.classes, dtype=object)
        self.feature_names = [f.name for f in bundle.features]
        self.n_features_in_ = len(self.feature_names)

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803 (scikit-learn's name)
        """Probabilities of the classes.

        Parameters
        ----------
        X : polars or pandas DataFrame, pyarrow Table, or ndarray of shape (n, n_features)
            Frames may have more columns, in any order; an array has exactly `feature_names`.

        Returns
        -------
        ndarray of float64, shape (n, k)
            Rows add up to 1.

        Raises
        ------
        InputError
            Naming the features that are missing, or a column that holds no usable numbers.
        """
        table = as_table(X, self.feature_names)
        self.check_columns(table.column_names, where="predict_proba")
        parts = [
            self.predict_batch(table.slice(start, WHOLE_GROUP_ROWS))
            for start in range(0, table.num_rows, WHOLE_GROUP_ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes_)))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row, shape (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def check_columns(self, names: Sequence[str], *, where: str) -> None:
        self.preprocessor.require(names, fill_missing_kmers=self.fill_missing_kmers, where=where)

    def predict_batch(
        self, table: pa.Table, members: Sequence[int] | None = None, *, where: str = "data"
    ) -> np.ndarray:
        """Mean over `members` (positions; default all) for one batch; absent columns are filled as in training."""
        batch = self.preprocessor.transform(table, where=where)
        chosen = self.members if members is None else [self.members[i] for i in members]
        total = np.zeros((table.num_rows, len(self.classes_)))
        for member in chosen:
            total += member.predict_proba(batch)
        return total / len(chosen)

    def set_threads(self, threads: int) -> None:
        for member in self.members:
            member.set_threads(threads)


def as_table(data: Any, names: Sequence[str]) -> pa.Table:
    """A frame, table or array as an Arrow table.

    Raises
    ------
    UsageError
        A type that is none of these, or an array of another width.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pl.DataFrame):
        return data.to_arrow()
    if isinstance(data, np.ndarray):
        if data.ndim != 2 or data.shape[1] != len(names):
            raise UsageError(f"array of shape {data.shape}", expected=f"(n, {len(names)}), columns as feature_names")
        columns = [pa.array(np.ascontiguousarray(data[:, i])) for i in range(len(names))]
        return pa.Table.from_arrays(columns, names=list(names))
    if type(data).__module__.split(".")[0] == "pandas":
        table: pa.Table = pa.Table.from_pandas(data, preserve_index=False)
        return table
    raise UsageError(
        f"cannot predict on {type(data).__name__}",
        expected="a polars or pandas DataFrame, a pyarrow Table or a numpy array",
    )
