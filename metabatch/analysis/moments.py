"""Weighted means, variances and covariances by streaming, merged without loss of precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A spread below this part of the mean is rounding, not variation.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Moments:
    """Moments of pairs (x, y), element by element of arrays of one shape, float64.

    weight : sum of weights. x, y : means. xx, yy, xy : weighted sums of products of deviations from the means.
    Merged as in Chan, Golub and LeVeque (1983): exact whatever the order, without the cancellation of raw sums.
    """

    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    @classmethod
    def none(cls, size: int) -> Moments:
        return cls(*(np.zeros(size) for _ in range(6)))

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Moments:
        """Of columns. `x`, `y`: float64, shape (n, d); `weight`: shape (n, d) or (n, 1)."""
        total = np.broadcast_to(weight.sum(axis=0), x.shape[1:]).astype(np.float64)
        mean_x, mean_y = _ratio((weight * x).sum(axis=0), total), _ratio((weight * y).sum(axis=0), total)
        far_x, far_y = x - mean_x, y - mean_y
        weighted = weight * far_x
        xx, xy = (weighted * far_x).sum(axis=0), (weighted * far_y).sum(axis=0)
        np.multiply(far_y, far_y, out=far_y)
        return cls(total, mean_x, mean_y, xx, (weight * far_y).sum(axis=0), xy)

    def __add__(self, other: Moments) -> Moments:
        total = self.weight + other.weight
        part = _ratio(other.weight, total)
        far_x, far_y = other.x - self.x, other.y - self.y
        between = self.weight * part
        return Moments(
            total,
            self.x + far_x * part,
            self.y + far_y * part,
            self.xx + other.xx + between * far_x**2,
            self.yy + other.yy + between * far_y**2,
            self.xy + other.xy + between * far_x * far_y,
        )

    def scaled(self, factor: np.ndarray) -> Moments:
        """The same with all weights multiplied."""
        return Moments(self.weight * factor, self.x, self.y, self.xx * factor, self.yy * factor, self.xy * factor)

    def sd_x(self) -> np.ndarray:
        """Standard deviation of x (of the rows at hand, no estimate of a larger population's)."""
        return np.sqrt(_ratio(self.xx, self.weight))

    def sd_y(self) -> np.ndarray:
        return np.sqrt(_ratio(self.yy, self.weight))

    def correlation(self) -> np.ndarray:
        """Pearson's, NaN where x or y does not vary."""
        sd_x, sd_y = self.sd_x(), self.sd_y()
        varies = (sd_x > _ROUNDING * np.abs(self.x)) & (sd_y > _ROUNDING * np.abs(self.y))
        found = np.full(self.x.shape, np.nan)
        np.divide(_ratio(self.xy, self.weight), sd_x * sd_y, out=found, where=varies)
        return np.clip(found, -1, 1)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """0 where nothing is below."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
