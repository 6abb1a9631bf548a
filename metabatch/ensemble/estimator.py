"""The estimator people load: one model, whatever lies behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin

from metabatch.data.matrices import as_matrix, as_rows
from metabatch.data.preprocess import Preprocessor
from metabatch.errors import UsageError
from metabatch.models.member import AnyMember, trees_only
from metabatch.models.pooling import gene_level, pool
from metabatch.resources.law import WHOLE_GROUP_ROWS
from metabatch.rundir.bundle import Bundle

# Rows that are held as one matrix while all members score them: 76 MB at 1,167 features. Each call of XGBoost prepares
# its trees anew, so that 2,048 rows at a time take nearly twice as long.
_MATRIX_ROWS = 16_384


class MetaModel(ClassifierMixin, BaseEstimator):
    """All members as one classifier, combined as the bundle says.

    scikit-learn's tools take it as a fitted classifier; `fit` refuses, for training is `metabatch`'s own.

    Parameters
    ----------
    bundle : Bundle
    members : sequence of Member or MemberInParts
    fill_missing_kmers : bool
        Count k-mer columns that the data lacks as 0 instead of refusing.

    Attributes
    ----------
    classes_ : ndarray of str, shape (k,)
        Order of the columns of `predict_proba`: sorted, as scikit-learn's classifiers have them, whatever the order of
        `--classes`.
    feature_names, feature_names_in_ : list of str, and the same as ndarray of str, shape (n_features_in_,)
        Features in order; for data without column names this is the order expected.
    n_features_in_ : int
    """

    def __init__(self, bundle: Bundle, members: Sequence[AnyMember], *, fill_missing_kmers: bool = False) -> None:
        self.bundle = bundle
        self.members = members
        self.fill_missing_kmers = fill_missing_kmers
        self.preprocessor = Preprocessor(bundle.features)
        # scikit-learn's scorers take it for granted that classes are sorted.
        self._sorted = np.argsort(bundle.columns.classes)
        self.classes_ = np.array(bundle.columns.classes, dtype=object)[self._sorted]
        self.feature_names = [f.name for f in bundle.features]
        self.feature_names_in_ = np.array(self.feature_names, dtype=object)
        self.n_features_in_ = len(self.feature_names)

    def fit(self, X: Any, y: Any = None) -> MetaModel:  # noqa: N803 (scikit-learn's name)
        """Refuse: scikit-learn asks every estimator for this method.

        Raises
        ------
        UsageError
        """
        del X, y
        raise UsageError("a loaded model cannot be fitted", next_step="train one: bin/plan, bin/train-instance")

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities of the classes.

        Parameters
        ----------
        X : polars or pandas DataFrame, pyarrow Table, or ndarray of shape (n, n_features)
            Frames may have more columns, in any order; an array has exactly `feature_names`.

        Returns
        -------
        ndarray of float64, shape (n, k)
            Columns as `classes_`; rows add up to 1.

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
        return np.concatenate(parts)[:, self._sorted] if parts else np.empty((0, len(self.classes_)))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row, shape (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def check_columns(self, names: Sequence[str], *, where: str) -> None:
        self.preprocessor.require(names, fill_missing_kmers=self.fill_missing_kmers, where=where)

    def predict_batch(self, table: pa.Table, *, where: str = "data") -> np.ndarray:
        """Probabilities for one batch, float64, shape (n, k), classes as in the bundle; absent columns are filled as in
        training.
        """
        asked = np.array(self.bundle.combination.weights) > 0
        speaks = np.broadcast_to(asked[:, None], (len(asked), table.num_rows))
        rule = self.bundle.combination
        return pool(self.member_probabilities(table, speaks, where=where), rule, gene_level(table, rule))

    def member_probabilities(self, table: pa.Table, speaks: np.ndarray, *, where: str = "data") -> np.ndarray:
        """Each member's own calibrated probabilities.

        Parameters
        ----------
        table : pyarrow.Table
            A batch as read.
        speaks : ndarray of bool, shape (m, n)
            Which members are asked about which row.

        Returns
        -------
        ndarray of float64, shape (m, n, k)
            Classes as in the bundle; NaN where a member was not asked.
        """
        batch = self.preprocessor.transform(table, where=where)
        laid_out = as_rows if all(trees_only(member) for member in self.members) else as_matrix
        found = np.full((len(self.members), table.num_rows, len(self.classes_)), np.nan)
        for start in range(0, table.num_rows, _MATRIX_ROWS):
            part = slice(start, start + _MATRIX_ROWS)
            values = laid_out(batch.slice(start, _MATRIX_ROWS))
            for member, own, asked in zip(self.members, found, speaks[:, part], strict=True):
                if asked.all():
                    own[part] = member.predict_proba(values)
                elif asked.any():
                    own[part][asked] = member.predict_proba(values[asked])
        return found

    def one_vs_rest(self, name: str) -> OneVsRest:
        """The model of one class as a binary classifier, for tools that take only those (`CalibrationDisplay`).

        Raises
        ------
        UsageError
            No such class.
        """
        if name not in self.bundle.columns.classes:
            raise UsageError(f"{name} is no class of the model", expected=", ".join(self.bundle.columns.classes))
        return OneVsRest(self, name)

    def set_threads(self, threads: int) -> None:
        for member in self.members:
            member.set_threads(threads)


class OneVsRest(ClassifierMixin, BaseEstimator):
    """One class of a model against all others; `classes_` are False and True.

    Parameters
    ----------
    model : MetaModel
    name : str
        The class.
    """

    def __init__(self, model: MetaModel, name: str) -> None:
        self.model = model
        self.name = name
        self.classes_ = np.array([False, True])
        self.n_features_in_ = model.n_features_in_
        self.feature_names_in_ = model.feature_names_in_

    def fit(self, X: Any, y: Any = None) -> OneVsRest:  # noqa: N803
        """As `MetaModel.fit`."""
        self.model.fit(X, y)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """float64, shape (n, 2): of the others together, and of the class."""
        own = self.model.predict_proba(X)[:, list(self.model.classes_).index(self.name)]
        return np.column_stack([1 - own, own])

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Whether it is the most probable class of each row, shape (n,)."""
        return np.asarray(self.model.predict(X) == self.name)


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
