"""Gradients of the log loss, in numbers whose sums are exact, for the rows that each tree is grown on.

XGBoost sums gradients in float64, and a sum of any floats depends on the order of its parts: workers that each sum
their own rows would split a near tie otherwise than one alone would. Here all gradients of a tree are multiples of one
power of two, so chosen that no sum of them needs more than the 53 bits of a float64: their sums are exact, whoever adds
up what, and any number of workers grows the same trees to the last bit (tests/integration/test_distributed.py). What is
rounded off a row is at most 2^-52 of the weight of all rows.

The rows of a tree (`subsample`), too, are drawn by the booster's seed, the tree, and the row's gene and number in it,
instead of by every worker for itself. Rows that are not drawn have gradients of 0, as in XGBoost's uniform sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xgboost as xgb

_BLOCK = 1 << 14  # rows at a time, a thread
# One of a float64's 53 for what rounding adds to a sum; no float32 is finer than the second.
_SUM_BITS, _FINEST = 52, 2.0**-149
# As XGBoost's objective `binary:logistic` has it.
_LEAST_HESSIAN = np.float32(1e-16)


@dataclass(frozen=True)
class RowKeys:
    """A number for every row, of its gene (code) and its number in the gene; however the files are read.

    gene : unsigned integers, shape (n,). number : uint32, shape (n,).
    """

    gene: np.ndarray
    number: np.ndarray

    def of(self, rows: slice) -> np.ndarray:
        """Of some of the rows, uint64."""
        return np.asarray(self.gene[rows].astype(np.uint64) << np.uint64(32) | self.number[rows])


class Gradients:
    """First and second derivatives of one booster's loss, tree by tree.

    Parameters
    ----------
    params : mapping
        Of the booster: its `seed`, `subsample` and `nthread`.
    label : ndarray of bool, or of float32 in [0, 1]; shape (n,)
        Of the rows of all workers.
    weight : ndarray of float32, shape (n,), optional
        The rows' own weights; None: ones.
    held_out : ndarray of bool, shape (n,), optional
        Rows that no tree is grown on.
    draw : RowKeys, optional
        What rows are drawn by. None: their order.
    mine : slice
        The rows of this worker's matrix among them.

    Attributes
    ----------
    params : dict
        For XGBoost, which is to draw no rows.
    unit : float
        What every gradient is a multiple of.
    """

    def __init__(
        self, params: Mapping[str, object], label: np.ndarray, weight: np.ndarray | None,
        held_out: np.ndarray | None = None, *, draw: RowKeys | None = None, mine: slice = slice(None),
    ) -> None:  # fmt: skip
        self.params = {**params, "subsample": 1.0}
        self._seed, self._share = int(str(params["seed"])), float(str(params["subsample"]))
        self._threads = max(1, int(str(params.get("nthread", 1))))
        self._label, self._weight, self._held_out, self._draw = label, weight, held_out, draw
        self._mine = range(len(label))[mine]
        counted = weight if held_out is None or weight is None else weight[~held_out]
        total = float(len(label) if counted is None else counted.sum(dtype=np.float64))
        # No derivative is larger than the weight of its row.
        self.unit = max(2.0 ** (math.frexp(total)[1] - _SUM_BITS), _FINEST)

    def grow(self, booster: xgb.Booster, matrix: xgb.DMatrix, tree: int) -> None:
        """Add one tree, counted from 0."""
        first, second = self.of(tree, booster.predict(matrix))
        booster.boost(matrix, tree, grad=first, hess=second)

    def of(self, tree: int, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivatives by the margin of the matrix' rows, float32: (p - y) w and p (1 - p) w.

        `scores` : their probabilities by the trees before, float32.
        """
        begin, end = self._mine.start, self._mine.stop
        first, second = (np.empty(end - begin, dtype=np.float32) for _ in range(2))

        def fill(start: int) -> None:
            rows = slice(start, min(start + _BLOCK, end))
            own = slice(rows.start - begin, rows.stop - begin)
            counts, p = self._counts(tree, rows), scores[own]
            first[own] = self._rounded((p - self._label[rows]) * counts)
            second[own] = self._rounded(np.maximum(p * (1 - p), _LEAST_HESSIAN) * counts)

        with ThreadPoolExecutor(self._threads) as pool:  # numpy lets go of the interpreter
            for _ in pool.map(fill, range(begin, end, _BLOCK)):
                pass
        return first, second

    def _counts(self, tree: int, rows: slice) -> np.ndarray:
        """The weights of some rows for a tree, float32: 0 where they are held out or not drawn."""
        counts = np.ones(rows.stop - rows.start, np.float32) if self._weight is None else self._weight[rows]
        if self._share < 1:
            keys = np.arange(rows.start, rows.stop, dtype=np.uint64) if self._draw is None else self._draw.of(rows)
            counts = counts * (_lots(keys, self._seed, tree) < self._share)
        return counts if self._held_out is None else counts * ~self._held_out[rows]

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        # A float32 holds any multiple of the unit that a product of float32 is rounded to.
        return np.rint(values * np.float64(1 / self.unit)) * self.unit


def _lots(keys: np.ndarray, seed: int, tree: int) -> np.ndarray:
    """A number in [0, 1) for each key, float64: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), twice."""
    start = _mixed(np.array([seed << 32 | tree], dtype=np.uint64))
    return (_mixed(_mixed(keys) ^ start) >> np.uint64(11)) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64, as all that follows
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
