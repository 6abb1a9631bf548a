"""From a booster's score to a probability: Platt scaling, isotonic regression, prior correction.

Platt: p = sigmoid(a * logit(s) + b), fitted by unpenalised logistic regression on out-of-fold scores
(J. Platt 1999; on the logit as in A. Niculescu-Mizil and R. Caruana 2005). Isotonic: B. Zadrozny and
C. Elkan 2002. Prior correction: M. Saerens et al. 2002, for one class against the rest.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

EPS = 1e-7


class Calibrator(msgspec.Struct, frozen=True, kw_only=True):
    """One class's calibration, as stored in calibration.json.

    method : what is applied; `none` also when a fit was impossible (see `note`).
    slope, intercept : Platt's a and b.
    x, y : the isotonic step function's knots.
    prior_shift : added to the logit at the end; moves the training prevalence to `--prior`.
    """

    method: Literal["platt", "isotonic", "none"]
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    prior_shift: float = 0.0
    note: str | None = None

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probability of each score, float64, shape as given, within [1e-7, 1 - 1e-7]."""
        p = np.clip(np.asarray(scores, dtype=np.float64), EPS, 1 - EPS)
        if self.method == "platt":
            p = _sigmoid(self.slope * _logit(p) + self.intercept)
        elif self.method == "isotonic":
            p = np.interp(p, self.x, self.y)
        p = np.clip(p, EPS, 1 - EPS)
        if self.prior_shift:
            p = np.clip(_sigmoid(_logit(p) + self.prior_shift), EPS, 1 - EPS)
        return p


def fit(
    scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, method: str, *, prior: float | None = None
) -> Calibrator:
    """Fit one class's calibration on out-of-fold scores.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Booster probabilities of rows the booster did not train on.
    positive : ndarray of bool, shape (n,)
    weight : ndarray of shape (n,)
        Sampling weights (ones for none).
    method : {'platt', 'isotonic', 'none'}
    prior : float, optional
        Natural prevalence of the class; the fitted probabilities are moved from the (weighted) prevalence
        of these rows to it.
    """
    total = float(weight.sum())
    prevalence = float(weight[positive].sum()) / total if total else 0.0
    if not 0 < prevalence < 1:
        return Calibrator(method="none", note="only one class in the out-of-fold rows: scores are left as they are")
    shift = 0.0
    if prior is not None:
        shift = float(np.log(prior / (1 - prior)) - np.log(prevalence / (1 - prevalence)))
    if method == "platt":
        slope, intercept = _platt(scores, positive, weight)
        if slope <= 0:
            return Calibrator(
                method="none", prior_shift=shift,
                note=f"Platt slope {slope:.3g} would turn the ranking over: scores are left as they are",
            )  # fmt: skip
        return Calibrator(method="platt", slope=slope, intercept=intercept, prior_shift=shift)
    if method == "isotonic":
        with threadpool_limits(1):
            model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            model.fit(
                np.clip(scores, EPS, 1 - EPS).astype(np.float64), positive.astype(np.float64), sample_weight=weight
            )
        return Calibrator(
            method="isotonic",
            x=tuple(float(v) for v in model.X_thresholds_),
            y=tuple(float(v) for v in model.y_thresholds_),
            prior_shift=shift,
        )
    return Calibrator(method="none", prior_shift=shift)


def normalise(probabilities: np.ndarray) -> np.ndarray:
    """Rows divided by their sum: independent one-vs-rest probabilities made one distribution, shape (n, k)."""
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def _platt(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    logits = _logit(np.clip(scores.astype(np.float64), EPS, 1 - EPS))
    # One thread: the last bit of a threaded sum depends on the thread count.
    with threadpool_limits(1):
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", max_iter=200, tol=1e-8)
        model.fit(logits[:, None], positive.astype(np.int8), sample_weight=weight.astype(np.float64))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-z)))
