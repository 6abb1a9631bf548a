"""One-vs-rest linear models by stochastic gradient descent, all folds and classes fed from the same rows.

Each is scikit-learn's `SGDClassifier`; the rare class of each counts as much as all others together, so that the lines
are found where the rare rows are, and the margin is moved back by the log of what that changed (G. King and L. Zeng,
"Logistic regression in rare events data", Political Analysis 2001, the prior correction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn import config_context
from sklearn.linear_model import SGDClassifier

from metabatch.models.linear import Linear, standardised
from metabatch.options import ModelSpec

_LOSSES = {"sgd_logistic": "log_loss", "sgd_modified_huber": "modified_huber", "sgd_hinge": "hinge"}
# Step of a row of usual weight, by the squared length of a standardised row (its number of features): larger steps
# lost AP on the demo (0.03 and 0.1 gave the same, 1.0 a tenth less). A row of large weight makes no step above _FAR.
_STEP, _FAR = 0.1, 2.0
# Of a class without rows, or of nothing else: no line, a probability of next to nothing.
_NEVER = -15.0


class Learners:
    """Linear models of k classes for some groups of rows (each fold's training rows, and all rows).

    Parameters
    ----------
    features : sequence of str
        d names.
    mean, scale : ndarray of float64, shape (m, d)
        Standardisation of each of the m groups.
    totals : ndarray of float64, shape (m, k, 2)
        Weight of the rows of a class and of all others, in each group.
    counts : ndarray of int, shape (m,)
        Rows with weight of each group.
    largest : ndarray of float64, shape (k, 2)
        Largest weight of a row of the class and of the others.
    threads : int
        Classes learned at the same time.
    """

    def __init__(
        self, features: Sequence[str], mean: np.ndarray, scale: np.ndarray, totals: np.ndarray, counts: np.ndarray,
        largest: np.ndarray, spec: ModelSpec, alpha: float, threads: int,
    ) -> None:  # fmt: skip
        self._features, self._mean, self._scale, self._threads = list(features), mean, scale, threads
        groups, classes = totals.shape[:2]
        with np.errstate(divide="ignore", invalid="ignore"):
            # So that both sides weigh the same, and a row 1 on average.
            self._factors = np.where(totals > 0, counts[:, None, None] / (2 * totals), 0.0)
            shift = np.log(totals[..., 0]) - np.log(totals[..., 1])
        self._usable = np.all(totals > 0, axis=-1)
        self._shift = np.where(self._usable, shift, np.where(totals[..., 0] > 0, -_NEVER, _NEVER))
        self._models = [
            [
                SGDClassifier(
                    loss=_LOSSES[spec], alpha=alpha, learning_rate="constant", shuffle=False,
                    eta0=_step(float(np.max(self._factors[m, c] * largest[c])), len(self._features)),
                )
                for c in range(classes)
            ]
            for m in range(groups)
        ]  # fmt: skip

    def learn(self, batch: np.ndarray, label: np.ndarray, weight: np.ndarray, taking: Sequence[np.ndarray]) -> None:
        """One step for each row, in order.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, d)
            NaN where missing.
        label, weight : ndarray, shape (n,)
            Class codes and the rows' own weights.
        taking : sequence of ndarray of bool, shape (n,)
            Which rows are of each group.
        """
        with config_context(assume_finite=True), ThreadPoolExecutor(self._threads) as pool:
            for group, taken in enumerate(taking):
                mine = taken & (weight > 0)
                if not mine.any():
                    continue
                values = standardised(batch[mine], self._mean[group], self._scale[group])
                jobs = [
                    pool.submit(self._steps, group, code, values, label[mine] == code, weight[mine])
                    for code in range(len(self._models[group]))
                    if self._usable[group, code]
                ]
                for job in jobs:
                    job.result()

    def _steps(self, group: int, code: int, values: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> None:
        factor = self._factors[group, code]
        own = weight * np.where(positive, factor[0], factor[1])
        self._models[group][code].partial_fit(values, positive, classes=[False, True], sample_weight=own)

    def models(self) -> list[Linear]:
        """Of each group as it is now; copies."""
        found = []
        for group, own in enumerate(self._models):
            lines = [self._line(model) for model in own]
            found.append(
                Linear(
                    self._features, self._mean[group], self._scale[group], np.stack([line[0] for line in lines]),
                    np.array([line[1] for line in lines]) + self._shift[group],
                )
            )  # fmt: skip
        return found

    def _line(self, model: SGDClassifier) -> tuple[np.ndarray, float]:
        if not hasattr(model, "coef_"):
            return np.zeros(len(self._features)), 0.0
        return model.coef_[0].copy(), float(model.intercept_[0])

    def state(self) -> dict[str, np.ndarray]:
        """Everything that learning goes on from, float64: lines (m, k, d + 1), steps (m, k)."""
        lines = [[np.append(*self._line(model)) for model in own] for own in self._models]
        steps = [[getattr(model, "t_", 0.0) for model in own] for own in self._models]
        return {"lines": np.array(lines), "steps": np.array(steps, dtype=np.float64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`, to the last bit."""
        lines = state["lines"].reshape(len(self._models), len(self._models[0]), -1)
        steps = state["steps"].reshape(lines.shape[:2])
        for group, own in enumerate(self._models):
            for code, model in enumerate(own):
                if not steps[group, code]:
                    continue
                model.classes_ = np.array([False, True])
                model.n_features_in_ = len(self._features)
                model.coef_ = lines[group, code, None, :-1].copy()
                model.intercept_ = lines[group, code, -1:].copy()
                model.t_ = float(steps[group, code])


def _step(largest_weight: float, features: int) -> float:
    return min(_STEP, _FAR / largest_weight if largest_weight > 0 else math.inf) / features
