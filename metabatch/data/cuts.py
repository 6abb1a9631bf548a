"""Where each feature is cut into bins: decided once, by `plan`, for every matrix of the run.

XGBoost finds cuts by a quantile sketch over all rows of every matrix it builds; that costs two of four passes over
the data and some 90 KB to 200 KB a feature. Here the feature scan of `plan` already sees every cell: integers of few
values get a bin each, exactly; of other features a sample drawn evenly over all rows goes through XGBoost's own
sketch. A matrix then takes the cuts by way of a reference matrix of at most `max_bin` rows (`reference_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import xgboost as xgb

# Features sketched at once: bounds the float32 copy of the sample.
_CHUNK = 32


def sketch_cuts(samples: Sequence[np.ndarray], max_bin: int, threads: int) -> list[np.ndarray]:
    """The smallest value of each bin, float32, ascending, at most `max_bin` a feature.

    Parameters
    ----------
    samples : sequence of ndarray of float32, shape (n_j,)
        Values of each feature without missing ones; none is empty.
    """
    found: list[np.ndarray] = []
    for start in range(0, len(samples), _CHUNK):
        part = samples[start : start + _CHUNK]
        block = np.full((max(len(s) for s in part), len(part)), np.nan, dtype=np.float32)
        for column, sample in enumerate(part):
            block[: len(sample), column] = sample
        matrix = xgb.QuantileDMatrix(block, max_bin=max_bin, nthread=threads)
        pointers, values = matrix.get_quantile_cut()
        for column, sample in enumerate(part):
            # XGBoost's first value stands for minus infinity, its last for the end of the last bin.
            inner = values[pointers[column] + 1 : pointers[column + 1] - 1]
            found.append(np.concatenate([[sample.min()], inner]).astype(np.float32))
    return found


def reference_rows(cuts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows whose values are the cuts, float32, shape (most bins, features); short columns repeat their last."""
    rows = max(len(c) for c in cuts)
    return np.stack([np.pad(c, (0, rows - len(c)), mode="edge") for c in cuts], axis=1)


def cut_table(names: Sequence[str], cuts: Sequence[np.ndarray]) -> pl.DataFrame:
    """cuts.parquet: feature, values (the smallest value of each bin), in matrix order."""
    return pl.DataFrame({"feature": list(names), "values": [c.tolist() for c in cuts]}).cast(
        {"feature": pl.String, "values": pl.List(pl.Float32)}
    )


def cuts_of(table: pl.DataFrame) -> list[np.ndarray]:
    """The cuts of a table made by `cut_table`."""
    return [values.to_numpy() for values in table["values"]]
