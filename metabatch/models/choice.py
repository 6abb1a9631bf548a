"""All classes' calibration, by the method asked for or, with `auto`, by the one that predicts other genes best.

`auto` judges each method by its log loss on folds it was not fitted on, and takes a simpler one unless the gain of
the best is above its standard error over the folds (after the one-standard-error rule of L. Breiman et al. 1984).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from metabatch.models.calibration import Calibration, Calibrator, fit, log_losses, prior_ratios

# From simple to complex: no parameter, one, two, a step function.
SIMPLEST_FIRST = ("none", "temperature", "platt", "isotonic")


def fit_calibration(
    raw: np.ndarray, label: np.ndarray, weight: np.ndarray, classes: Sequence[str], method: str,
    prior: Mapping[str, float], fold: np.ndarray | None = None,
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
    method : {'platt', 'isotonic', 'temperature', 'none', 'auto'}
    prior : mapping of str to float
        Natural prevalence of some or all classes; the others share the rest as they do in these rows.
    fold : ndarray of int, shape (n,)
        Fold of each row, whole genes; needed by `auto` only.
    """
    calibrators = {}
    for code, name in enumerate(classes):
        scores, positive = raw[:, code], label == code
        if method == "auto":
            if fold is None:
                raise ValueError("auto chooses by folds: none were given")
            calibrators[name] = choose(scores, positive, weight, fold)
        else:
            calibrators[name] = fit(scores, positive, weight, method) if method != "none" else Calibrator(method="none")
    ratios = prior_ratios(label, weight, classes, prior) if prior else None
    return Calibration(classes=tuple(classes), calibrators=calibrators, prior_ratios=ratios)


def choose(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray, fold: np.ndarray) -> Calibrator:
    """One class's calibration by the method that `fold` speaks for, fitted on all rows; `note` says why.

    With rows of one fold only there is nothing to choose by: Platt scaling.
    """
    numbers = np.unique(fold)
    if len(numbers) < 2:
        return _noted(fit(scores, positive, weight, "platt"), "auto had one fold only, so nothing to choose by: platt")
    mass = np.array([weight[fold == number].sum(dtype=np.float64) for number in numbers])
    total = mass.sum()
    hits = weight[positive].sum(dtype=np.float64)
    if not 0 < hits < total:
        return fit(scores, positive, weight, "platt")  # says that nothing can be fitted
    # method -> weighted log loss of each fold, summed, by a calibrator of the other folds
    losses = {method: np.empty(len(numbers)) for method in SIMPLEST_FIRST}
    for k, number in enumerate(numbers):
        here = fold == number
        for method, loss in losses.items():
            calibrator = fit(scores[~here], positive[~here], weight[~here], method)
            loss[k] = (weight[here] * log_losses(calibrator.apply(scores[here]), positive[here])).sum()
    best = min(SIMPLEST_FIRST, key=lambda m: losses[m].sum())
    taken = next(m for m in SIMPLEST_FIRST if m == best or _within_noise(losses[m] - losses[best], mass))
    against = ", ".join(f"{m} {losses[m].sum() / total:.4g}" for m in SIMPLEST_FIRST if m != taken)
    note = (
        f"chosen by auto: {taken}, log loss {losses[taken].sum() / total:.4g} on folds not fitted on, against {against}"
    )
    if taken != best:
        note += f"; {best} gains no more than its standard error over {len(numbers)} folds"
    return _noted(fit(scores, positive, weight, taken), note)


def _within_noise(gain: np.ndarray, mass: np.ndarray) -> bool:
    """Whether a mean gain is no larger than its standard error, folds being the draws (ratio estimator).

    gain, mass : ndarray of shape (folds,)
        Summed gain and summed weight of each fold.
    """
    mean = gain.sum() / mass.sum()
    spread = ((gain - mean * mass) ** 2).sum() * len(gain) / (len(gain) - 1)
    return bool(mean <= np.sqrt(spread) / mass.sum())


def _noted(calibrator: Calibrator, note: str) -> Calibrator:
    return msgspec.structs.replace(calibrator, note="; ".join(n for n in (note, calibrator.note) if n))
