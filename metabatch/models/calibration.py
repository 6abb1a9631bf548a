"""From boosters' scores to probabilities: Platt scaling, temperature, isotonic regression, prior correction.

Platt: p = sigmoid(a * logit(s) + b), fitted by unpenalised logistic regression on out-of-fold scores
(J. Platt 1999; on the logit as in A. Niculescu-Mizil and R. Caruana 2005). Temperature: p = sigmoid(logit(s) / T)
(C. Guo et al. 2017, one class against the rest). Isotonic: B. Zadrozny and C. Elkan 2002. Prior correction, over
all classes at once: M. Saerens et al. 2002, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

EPS = 1e-7
# Beyond this a temperature says that the scores hold no information, or are never wrong.
MOST_TEMPERATURE = 100.0


class Calibrator(msgspec.Struct, frozen=True, kw_only=True):
    """One class's calibration, as stored in calibration.json.

    method : what is applied; `none` also when a fit was impossible (see `note`).
    slope, intercept : Platt's a and b; with a temperature T the slope is 1 / T.
    x, y : the isotonic step function's knots.
    """

    method: Literal["platt", "isotonic", "temperature", "none"]
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    note: str | None = None

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probability of each score, float64, shape as given, within [1e-7, 1 - 1e-7]."""
        p = np.clip(np.asarray(scores, dtype=np.float64), EPS, 1 - EPS)
        if self.method in ("platt", "temperature"):
            p = _sigmoid(self.slope * logit(p) + self.intercept)
        elif self.method == "isotonic":
            p = np.interp(p, self.x, self.y)
        return np.clip(p, EPS, 1 - EPS)


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A member's calibration of all classes (calibration.json).

    classes : in the order of the columns.
    calibrators : one a class.
    prior_ratios : per class, natural prevalence over that of the calibration rows; None without `--prior`.
    """

    format_version: int = 1
    classes: tuple[str, ...]
    calibrators: dict[str, Calibrator]
    prior_ratios: tuple[float, ...] | None = None

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Raw one-vs-rest scores (n, k) -> calibrated probabilities (n, k) whose rows add up to 1."""
        calibrated = [self.calibrators[c].apply(raw[:, i]) for i, c in enumerate(self.classes)]
        probabilities = normalise(np.stack(calibrated, axis=1))
        return probabilities if self.prior_ratios is None else normalise(probabilities * np.array(self.prior_ratios))


def prior_ratios(
    label: np.ndarray, weight: np.ndarray, classes: Sequence[str], prior: Mapping[str, float]
) -> tuple[float, ...]:
    """Natural over present prevalence of each class; 1 for a class without weight here."""
    mass = np.bincount(label, weights=weight, minlength=len(classes))
    if not mass.sum():
        return (1.0,) * len(classes)
    share = mass / mass.sum()
    others = sum(share[i] for i, c in enumerate(classes) if c not in prior)
    rest = 1 - sum(prior.values())
    return tuple(
        1.0 if share[i] == 0 else float(prior[c] / share[i] if c in prior else rest / others)
        for i, c in enumerate(classes)
    )


def fit(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, method: str) -> Calibrator:
    """Fit one class's calibration on out-of-fold scores.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Booster probabilities of rows the booster did not train on.
    positive : ndarray of bool, shape (n,)
    weight : ndarray of shape (n,)
        Sampling weights (ones for none).
    method : {'platt', 'isotonic', 'temperature', 'none'}
    """
    total = float(weight.sum())
    prevalence = float(weight[positive].sum()) / total if total else 0.0
    if not 0 < prevalence < 1:
        return Calibrator(method="none", note="only one class in the out-of-fold rows: scores are left as they are")
    if method == "platt":
        slope, intercept = logit_regression(scores, positive, weight)
        if slope <= 0:
            return Calibrator(
                method="none", note=f"Platt slope {slope:.3g} would turn the ranking over: scores are left as they are"
            )
        return Calibrator(method="platt", slope=slope, intercept=intercept)
    if method == "temperature":
        return _temperature(scores, positive, weight)
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
        )
    return Calibrator(method="none")


def normalise(probabilities: np.ndarray) -> np.ndarray:
    """Rows divided by their sum: independent one-vs-rest probabilities made one distribution, shape (n, k)."""
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def logit_regression(p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the weighted, unpenalised logistic regression of `positive` on logit p.

    Of scores that is Platt scaling; of probabilities, Cox's check of their calibration (D. R. Cox 1958).
    """
    logits = logit(np.clip(p.astype(np.float64), EPS, 1 - EPS))
    # One thread: the last bit of a threaded sum depends on the thread count.
    with threadpool_limits(1):
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", max_iter=200, tol=1e-8)
        model.fit(logits[:, None], positive.astype(np.int8), sample_weight=weight.astype(np.float64))
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def log_losses(p: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Log loss of each row, nats, of probabilities within [1e-7, 1 - 1e-7]."""
    return np.asarray(-np.log(np.where(positive, p, 1 - p)))


def _temperature(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> Calibrator:
    signed = logit(np.clip(scores.astype(np.float64), EPS, 1 - EPS))
    np.negative(signed, out=signed, where=positive)  # log loss of a row: log(1 + exp(signed / T))
    weight = weight.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float((weight * np.logaddexp(0, signed * np.exp(-log_temperature))).sum())

    bound = float(np.log(MOST_TEMPERATURE))
    best = float(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-8}).x)
    if abs(best) > bound - 1e-3:
        note = f"the temperature runs to its bound, {np.exp(best):.3g}: scores are left as they are"
        return Calibrator(method="none", note=note)
    return Calibrator(method="temperature", slope=float(np.exp(-best)))


def logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-z)))
