"""Training on the one matrix: classes by changing labels, folds by 0/1 weights.

A row with weight 0 is exactly an excluded row (FIELD_NOTES; tests/integration/test_training.py), so
cross-validation needs no second matrix, and the held-out rows' scores come from the same matrix too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xgboost as xgb

from metabatch.options import Options
from metabatch.rundir.manifests import Booster

_METRIC = "logloss"
_DATA = "held_out"  # XGBoost allows no hyphen


@dataclass(frozen=True)
class FoldResult:
    """A fold model's outcome. `rounds`: trees up to the best round; `scores`: (n,) over all matrix rows."""

    rounds: int
    trained_rounds: int
    stopped_early: bool
    train_logloss: float
    held_out_logloss: float
    scores: np.ndarray


class _RoundHook(xgb.callback.TrainingCallback):
    def __init__(self, on_round: Callable[[], None]) -> None:
        self._on_round = on_round

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: object) -> bool:  # noqa: ARG002
        self._on_round()
        return False


def booster_params(options: Options, settings: Booster, threads: int, seed: int) -> dict[str, object]:
    """XGBoost parameters of every booster of the run."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "device": "cpu",
        "max_depth": options.max_depth,
        "learning_rate": options.learning_rate,
        "subsample": options.subsample,
        "colsample_bytree": options.colsample_bytree,
        "max_bin": options.max_bin,
        "base_score": settings.base_score,
        "min_child_weight": settings.min_child_weight,
        "seed": seed,
        "nthread": threads,
        "disable_default_eval_metric": True,
    }


def log_loss(p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean of -log(probability given to the truth); NaN without weight."""
    total = float(weight.sum(dtype=np.float64))
    if not total:
        return float("nan")
    clipped = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(positive, clipped, 1 - clipped))
    return float((weight * loss).sum() / total)


def train_fold(
    matrix: xgb.DMatrix, params: dict[str, object], positive: np.ndarray, weight: np.ndarray, held_out: np.ndarray,
    rounds: int, patience: int, on_round: Callable[[], None],
) -> FoldResult:  # fmt: skip
    """Train on the rows outside `held_out`; stop when the held-out log loss has not improved for the patience.

    Parameters
    ----------
    positive, held_out : ndarray of bool, shape (n,)
    weight : ndarray of float32, shape (n,)
        The rows' own weights; those of held-out rows count in the metric only.
    rounds : int
        Most trees.
    patience : int
        Rounds without gain before stopping; 0: all `rounds` are trained and kept.
    """
    matrix.set_info(label=positive.astype(np.float32), weight=np.where(held_out, np.float32(0), weight))
    truth, held_weight = positive[held_out], weight[held_out]

    def metric(predictions: np.ndarray, _: xgb.DMatrix) -> tuple[str, float]:
        return _METRIC, log_loss(predictions[held_out], truth, held_weight)

    limit = rounds
    callbacks: list[xgb.callback.TrainingCallback] = [_RoundHook(on_round)]
    if patience:
        callbacks.append(
            xgb.callback.EarlyStopping(rounds=patience, metric_name=_METRIC, data_name=_DATA, maximize=False)
        )
        booster = xgb.train(
            params, matrix,
            num_boost_round=limit, evals=[(matrix, _DATA)], custom_metric=metric,
            verbose_eval=False, callbacks=callbacks,
        )  # fmt: skip
        rounds = booster.best_iteration + 1
    else:
        booster = xgb.train(params, matrix, num_boost_round=limit, callbacks=callbacks)
    trained = booster.num_boosted_rounds()
    scores = booster.predict(matrix, iteration_range=(0, rounds))
    kept = ~held_out
    return FoldResult(
        rounds=rounds,
        trained_rounds=trained,
        stopped_early=trained < limit,
        train_logloss=log_loss(scores[kept], positive[kept], weight[kept]),
        held_out_logloss=log_loss(scores[held_out], truth, held_weight),
        scores=scores,
    )


def train_final(
    matrix: xgb.DMatrix, params: dict[str, object], positive: np.ndarray, weight: np.ndarray | None,
    rounds: int, on_round: Callable[[], None],
) -> xgb.Booster:  # fmt: skip
    """Train on all rows for a fixed number of rounds.

    `weight` None: on a matrix that never had weights; saves the memory of as many ones.
    """
    matrix.set_info(label=positive.astype(np.float32))
    if weight is not None:
        matrix.set_info(weight=weight)
    booster = xgb.train(params, matrix, num_boost_round=rounds, callbacks=[_RoundHook(on_round)])
    booster.reset()  # lets go of histograms and caches, which would pile up class by class
    return booster


def recommended_rounds(best: list[int], limit: int) -> int:
    """mean + sd of the folds' best rounds, at most `limit` (SPEC 4.3); `limit` without folds."""
    if not best:
        return limit
    return int(min(limit, np.ceil(np.mean(best) + np.std(best))))
