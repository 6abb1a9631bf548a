"""Mean and standard deviation of every feature, streaming, for rows in groups."""

from __future__ import annotations

import numpy as np

# A feature that varies by less than this part of its mean is constant but for rounding.
_TINY = 1e-9


class Moments:
    """Weighted sums of m groups of rows over d features; gaps do not count.

    The sums are of differences from the first row's values, so that large means do not drown the variance.
    """

    def __init__(self, groups: int, features: int) -> None:
        self._weight, self._sum, self._square = (np.zeros((groups, features)) for _ in range(3))
        self._origin: np.ndarray | None = None

    def add(self, batch: np.ndarray, group: np.ndarray, weight: np.ndarray) -> None:
        """Take in rows.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, d)
        group : ndarray of int, shape (n,)
        weight : ndarray of shape (n,)
        """
        if self._origin is None:
            self._origin = np.nan_to_num(batch[0].astype(np.float64))
        for number in np.unique(group):
            mine = group == number
            values = batch[mine] - self._origin
            there = ~np.isnan(values)
            values[~there] = 0.0
            own = weight[mine].astype(np.float64)
            # Not by BLAS, whose last bits depend on the number of its threads.
            self._weight[number] += np.einsum("n,nd->d", own, there, optimize=False)
            self._sum[number] += np.einsum("n,nd->d", own, values, optimize=False)
            values *= values
            self._square[number] += np.einsum("n,nd->d", own, values, optimize=False)

    def standardisation(self, groups: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of these groups together, float64, shape (d,); deviation 1 of a constant.

        A feature without any value has mean 0 and deviation 1.
        """
        weight, total, square = (a[groups].sum(axis=0) for a in (self._weight, self._sum, self._square))
        origin = self._origin if self._origin is not None else np.zeros(len(weight))
        with np.errstate(divide="ignore", invalid="ignore"):
            shifted = np.where(weight > 0, total / weight, 0.0)
            variance = np.where(weight > 0, square / weight, 0.0) - shifted**2
        mean = np.where(weight > 0, origin + shifted, 0.0)
        deviation = np.sqrt(np.maximum(variance, 0.0))
        constant = deviation <= _TINY * np.maximum(np.abs(mean), 1e-30)
        return mean, np.where(constant, 1.0, deviation)
