"""The table of contributions: sums over rows as they come, and the moments to pool tables by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from metabatch.analysis.bounds import BLOCK_ROWS
from metabatch.analysis.moments import Moments

# Largest difference allowed between a row's margin and the sum of its contributions, log-odds.
ADDITIVITY = 1e-3


class Sums:
    """Sums of one class over the rows seen. `error`: largest difference between margin and contributions."""

    def __init__(self, features: int) -> None:
        self.rows = self.rows_of_class = 0
        self.weight = self.weight_of_class = self.error = 0.0
        self.base = float("nan")
        self._size = Moments.none(features)  # of |contribution| and contribution
        self._known = Moments.none(features)  # of value and contribution, where there is a value
        self._of_class = np.zeros(features)

    def add(
        self, name: str, values: np.ndarray, contributions: np.ndarray, margin: np.ndarray, weight: np.ndarray,
        positive: np.ndarray,
    ) -> None:  # fmt: skip
        """`values`: shape (n, features); `contributions`: shape (n, features + 1), the last is the base value."""
        self.base = float(contributions[0, -1])
        self.rows += len(values)
        self.rows_of_class += int(positive.sum())
        self.weight += float(weight.sum())
        self.weight_of_class += float(weight[positive].sum())
        for start in range(0, len(values), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            block, weights = contributions[part].astype(np.float64), weight[part, None]
            error = float(np.abs(block.sum(axis=1) - margin[part]).max())
            if not error <= ADDITIVITY:
                raise ValueError(
                    f"{name}: the contributions of a row differ from its margin by {error:.2g} log-odds "
                    f"(at most {ADDITIVITY:g} is allowed)"
                )
            self.error = max(self.error, error)
            block = block[:, :-1]
            size = np.abs(block)
            self._of_class += weights[positive[part], 0] @ size[positive[part]]
            self._size += Moments.of(size, block, weights)
            del size
            value = values[part].astype(np.float64)
            missing = np.isnan(value)
            if missing.any():
                value[missing] = 0.0
                weights = np.where(missing, 0.0, weights)
            self._known += Moments.of(value, block, weights)

    def table(self, name: str, features: Sequence[str]) -> pl.DataFrame:
        with_class = self.weight_of_class > 0
        of_class = self._of_class / self.weight_of_class if with_class else np.full(len(features), np.nan)
        return shap_table([name] * len(features), features, self.rows, self._size, self._known, of_class,
                      np.full(len(features), self.weight_of_class))  # fmt: skip


def shap_table(
    name: Sequence[str], feature: Sequence[str], rows: int | np.ndarray, size: Moments, known: Moments,
    of_class: np.ndarray, weight_of_class: np.ndarray,
) -> pl.DataFrame:  # fmt: skip
    """shap.parquet. known_* and value_* are over the rows that have a value: with them tables can be pooled."""
    count = np.broadcast_to(np.asarray(rows, dtype=np.int64), len(feature))
    return pl.DataFrame(
        {
            "class": name, "feature": feature, "mean_abs_shap": size.x, "mean_shap": size.y, "sd_shap": size.sd_y(),
            "mean_abs_shap_of_class": of_class, "direction": known.correlation(), "rows": count,
            "weight": size.weight, "weight_of_class": weight_of_class, "known_weight": known.weight,
            "value_mean": known.x, "value_sd": known.sd_x(), "known_mean_shap": known.y,
            "known_sd_shap": known.sd_y(),
        }
    ).with_columns(pl.col("mean_abs_shap_of_class", "direction").fill_nan(None))  # fmt: skip


def moments_of(columns: Mapping[str, np.ndarray], weight: str, x: str, sd_x: str | None, y: str, sd_y: str) -> Moments:
    """Moments as a table holds them."""
    total = columns[weight]
    far_y = columns[sd_y]
    far_x = columns[sd_x] if sd_x else np.zeros_like(far_y)
    together = far_x * far_y * np.nan_to_num(columns["direction"])
    return Moments(total, columns[x], columns[y], total * far_x**2, total * far_y**2, total * together)
