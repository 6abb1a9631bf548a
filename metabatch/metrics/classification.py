"""Metrics per class, weighted by the sampling weights where there are any; null where undefined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

ECE_BINS = 15


def class_metrics(
    score: np.ndarray, positive: np.ndarray, weight: np.ndarray, *, decided: np.ndarray | None = None,
    probability: bool = True,
) -> dict[str, float | int | None]:  # fmt: skip
    """Metrics of one class against the rest.

    Parameters
    ----------
    score : ndarray of shape (n,)
    positive : ndarray of bool, shape (n,)
    weight : ndarray of shape (n,)
        Sampling weights; ones for none. All metrics are weighted by them.
    decided : ndarray of bool, shape (n,), optional
        Rows where this class is the most probable one; F1 is of this decision.
    probability : bool
        False for scores that are no probabilities: Brier score and ECE are null.

    Returns
    -------
    dict
        ap, roc_auc, f1, top_k, brier, ece, log_loss, prevalence (weighted), positives, rows. Ranking
        metrics are null when one side has no weight.
    """
    total = float(weight.sum())
    share = float(weight[positive].sum()) / total if total else math.nan
    result: dict[str, float | int | None] = {
        "ap": None, "roc_auc": None, "f1": None, "top_k": None, "brier": None, "ece": None, "log_loss": None,
        "prevalence": _finite(share), "positives": int(positive.sum()), "rows": len(positive),
    }  # fmt: skip
    if not total:
        return result
    if 0 < share < 1:
        result["ap"] = average_precision(score, positive, weight)
        result["roc_auc"] = float(roc_auc_score(positive, score, sample_weight=weight))
        result["top_k"] = top_k(score, positive, weight)
        if decided is not None:
            result["f1"] = float(f1_score(positive, decided, sample_weight=weight, zero_division=0))
    if probability:
        p = np.clip(np.asarray(score, dtype=np.float64), 0, 1)
        result["brier"] = float(np.average((p - positive) ** 2, weights=weight))
        result["ece"] = expected_calibration_error(p, positive, weight)
        clipped = np.clip(p, 1e-7, 1 - 1e-7)
        result["log_loss"] = float(np.average(-np.log(np.where(positive, clipped, 1 - clipped)), weights=weight))
    return result


def average_precision(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Weighted average precision of one class; both sides must have weight."""
    return float(average_precision_score(positive, score, sample_weight=weight))


def top_k(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Part of the k best-scored rows that are positive, k = number of positives (SpliceAI's top-k accuracy).

    With weights, rows count as many positions as their weight; ties count in equal parts.
    Source: K. Jaganathan et al., Cell 2019.
    """
    k = float(weight[positive].sum())
    order = np.argsort(-score, kind="stable")
    _, group = np.unique(-score[order], return_inverse=True)
    w = np.bincount(group, weights=weight[order])
    hits = np.bincount(group, weights=weight[order] * positive[order])
    before = np.concatenate([[0.0], np.cumsum(w)[:-1]])
    taken = np.clip((k - before) / np.where(w > 0, w, 1), 0, 1)
    return float((hits * taken).sum() / k)


def reliability(p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Reliability curve over 15 bins of equal width: mean predicted, observed share, weight and rows per bin."""
    index = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    w = np.bincount(index, weights=weight, minlength=ECE_BINS)
    safe = np.where(w > 0, w, 1)
    return {
        "predicted": np.bincount(index, weights=weight * p, minlength=ECE_BINS) / safe,
        "observed": np.bincount(index, weights=weight * positive, minlength=ECE_BINS) / safe,
        "weight": w,
        "rows": np.bincount(index, minlength=ECE_BINS),
    }


def expected_calibration_error(p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean gap between predicted and observed over the bins of `reliability` (Naeini et al. 2015)."""
    curve = reliability(p, positive, weight)
    gap = np.abs(curve["predicted"] - curve["observed"])
    return float((curve["weight"] * gap).sum() / curve["weight"].sum())


def all_metrics(
    proba: np.ndarray, label: np.ndarray, weight: np.ndarray, classes: tuple[str, ...], *, probability: bool = True
) -> dict[str, Any]:
    """Per-class metrics, their macro means, accuracy, multi-class log loss and the confusion table.

    Parameters
    ----------
    proba : ndarray of shape (n, k)
        NaN columns stand for classes without a score.
    label : ndarray of int, shape (n,)
    """
    have = [i for i in range(len(classes)) if not np.isnan(proba[:, i]).any()]
    complete = len(have) == len(classes)
    choice = np.argmax(proba, axis=1) if complete else None
    per_class = {
        classes[i]: class_metrics(
            proba[:, i], label == i, weight, decided=None if choice is None else choice == i, probability=probability
        )
        for i in have
    }
    result: dict[str, Any] = {"classes": per_class, "macro": _macro(per_class)}
    total = weight.sum()
    if choice is not None and total > 0:
        table = np.zeros((len(classes), len(classes)))
        np.add.at(table, (label, choice), weight)
        result["accuracy"] = float(np.average(choice == label, weights=weight))
        result["confusion"] = {
            "truth_by_row_prediction_by_column": list(classes),
            "weighted": [[round(float(v), 3) for v in row] for row in table],
        }
        if probability:
            truth = np.clip(proba[np.arange(len(label)), label], 1e-7, 1)
            result["log_loss"] = float(np.average(-np.log(truth), weights=weight))
    return result


def _macro(per_class: dict[str, dict[str, float | int | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in ("ap", "roc_auc", "f1", "top_k", "brier", "ece"):
        values = [m[name] for m in per_class.values() if m[name] is not None]
        means[name] = float(np.mean(values)) if len(values) == len(per_class) and values else None  # type: ignore[arg-type]
    return means


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
