"""From boosters' scores to probabilities: Platt scaling, isotonic regression, prior correction.

Platt: p = sigmoid(a * logit(s) + b), fitted by unpenalised logistic regression on out-of-fold scores
(J. Platt 1999; on the logit as in A. Niculescu-Mizil and R. Caruana 2005). Isotonic: B. Zadrozny and
C. Elkan 2002. Prior correction, over all classes at once: M. Saerens et al. 2002, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """

    method: Literal["platt", "isotonic", "none"]
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    note: str | None = None

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probability of each score, float64, shape as given, within [1e-7, 1 - 1e-7]."""
        p = np.clip(np.asarray(scores, dtype=np.float64), EPS, 1 - EPS)
        if self.method == "platt":
            p = _sigmoid(self.slope * _logit(p) + self.intercept)
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


def fit_calibration(
    raw: np.ndarray, label: np.ndarray, weight: np.ndarray, classes: Sequence[str], method: str,
    prior: Mapping[str, float],
) -> Calibration:  # fmt: skip
    """Fit all classes on out-of-fold scores.

    Parameters
    ----------
    raw : ndarray of shape (n, k)
        Booster probabilities of rows the boosters did not train on.
    label : ndarray of int, shape (n,)
        Positions in `classes`.
    weight : ndarray of shape (n,)
        Sampling weights (ones for none).
    method : {'platt', 'isotonic', 'none'}
    prior : mapping of str to float
        Natural prevalence of some or all classes; the others share the rest as they do in these rows.
    """
    calibrators = {
        name: fit(raw[:, code], label == code, weight, method) if method != "none" else Calibrator(method="none")
        for code, name in enumerate(classes)
    }
    ratios = prior_ratios(label, weight, classes, prior) if prior else None
    return Calibration(classes=tuple(classes), calibrators=calibrators, prior_ratios=ratios)


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
    method : {'platt', 'isotonic', 'none'}
    """
    total = float(weight.sum())
    prevalence = float(weight[positive].sum()) / total if total else 0.0
    if not 0 < prevalence < 1:
        return Calibrator(method="none", note="only one class in the out-of-fold rows: scores are left as they are")
    if method == "platt":
        slope, intercept = _platt(scores, positive, weight)
        if slope <= 0:
            return Calibrator(
                method="none", note=f"Platt slope {slope:.3g} would turn the ranking over: scores are left as they are"
            )
        return Calibrator(method="platt", slope=slope, intercept=intercept)
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
