"""A linear member: one line a class over standardised features, and the calibration of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from scipy.special import expit

from metabatch.errors import InputError
from metabatch.models.calibration import Calibration

LINEAR_FILE = "linear.parquet"
_INTERCEPT = "(intercept)"
# Rows standardised at a time: in float64 these are a few MB.
_ROWS = 2_048


@dataclass(frozen=True)
class Linear:
    """One-vs-rest linear models of some classes.

    features : names, d of them.
    mean, scale : float64, shape (d,): a value v counts as (v - mean) / scale, a missing one as 0.
    coefficients, intercepts : float64, shapes (k, d) and (k,): of the margin, which is a log-odds.
    """

    features: Sequence[str]
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def raw(self, batch: np.ndarray) -> np.ndarray:
        """Uncalibrated probability of each class against the others.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, d)
            Preprocessed rows; NaN where missing.

        Returns
        -------
        ndarray of float32, shape (n, k)
            The same for a row whatever rows are with it.
        """
        found = np.empty((len(batch), len(self.intercepts)), dtype=np.float32)
        for start in range(0, len(batch), _ROWS):
            part = slice(start, start + _ROWS)
            values = standardised(batch[part], self.mean, self.scale)
            # Not by BLAS: the last bit of its sums depends on the number of rows and of threads.
            margin = np.einsum("nd,kd->nk", values, self.coefficients, optimize=False) + self.intercepts
            found[part] = expit(margin)
        return found


@dataclass(frozen=True)
class LinearMember:
    """As `metabatch.models.member.Member`."""

    linear: Linear
    calibration: Calibration

    def raw(self, batch: np.ndarray) -> np.ndarray:
        """As `Linear.raw`."""
        return self.linear.raw(batch)

    def predict_proba(self, batch: np.ndarray) -> np.ndarray:
        """Calibrated probabilities that add up to 1, float64, shape (n, k)."""
        return self.calibration.apply(self.raw(batch))

    def set_threads(self, threads: int) -> None:
        """It predicts in one thread, whatever `threads`."""


def standardised(batch: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(batch - mean) / scale as float64, 0 where missing."""
    values = batch - mean
    values /= scale
    np.nan_to_num(values, copy=False, nan=0.0)
    return values


def linear_table(model: Linear, classes: Sequence[str]) -> pl.DataFrame:
    """feature, mean, scale, {class}: the coefficient of a standard deviation; the last row has the intercepts."""
    columns: dict[str, object] = {
        "feature": [*model.features, _INTERCEPT],
        "mean": np.append(model.mean, 0.0),
        "scale": np.append(model.scale, 1.0),
    }
    for code, name in enumerate(classes):
        columns[f"coefficient_{name}"] = np.append(model.coefficients[code], model.intercepts[code])
    return pl.DataFrame(columns)


def read_linear(folder: Path, calibration: Calibration) -> LinearMember:
    """The model that was written as `linear_table`.

    Raises
    ------
    InputError
        The file is missing, damaged or of other classes.
    """
    file = folder / LINEAR_FILE
    try:
        table = pl.read_parquet(file)
        lines = table.select(f"coefficient_{name}" for name in calibration.classes).to_numpy().T
        names = table["feature"].to_list()
        if names[-1:] != [_INTERCEPT]:
            raise InputError(f"the last row of {file} is not {_INTERCEPT}")
        mean, scale = table["mean"].to_numpy()[:-1], table["scale"].to_numpy()[:-1]
    except (OSError, pl.exceptions.PolarsError, msgspec.MsgspecError) as error:
        raise InputError(f"model in {folder} cannot be read: {str(error).splitlines()[0]}") from None
    linear = Linear(names[:-1], mean, scale, np.ascontiguousarray(lines[:, :-1]), np.ascontiguousarray(lines[:, -1]))
    return LinearMember(linear, calibration)
