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


class _Judge:
    """The metric that stops a fold; keeps the scores of the best round (of the last one with `any_round`).

    They are what the booster would predict, to the last bit, and come with the metric; predicting again would search
    the bin of every cell, which on a matrix with missing cells takes as long as growing many trees.
    """

    def __init__(self, truth: np.ndarray, weight: np.ndarray, held_out: np.ndarray, *, any_round: bool) -> None:
        self._truth, self._weight, self._held_out, self._any_round = truth, weight, held_out, any_round
        self.loss = float("nan")
        self.scores = np.empty(0, dtype=np.float32)

    def __call__(self, predictions: np.ndarray, _: xgb.DMatrix) -> tuple[str, float]:
        loss = log_loss(predictions[self._held_out], self._truth, self._weight)
        loss = float(f"{loss:f}")  # the six decimals by which XGBoost decides which round is best
        if self._any_round or not len(self.scores) or loss < self.loss:
            self.loss = loss
            self.scores.resize(len(predictions), refcheck=False)
            np.copyto(self.scores, predictions)  # XGBoost uses its array again in the next round
        return _METRIC, loss


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
    judge = _Judge(positive[held_out], weight[held_out], held_out, any_round=not patience)
    callbacks: list[xgb.callback.TrainingCallback] = [_RoundHook(on_round)]
    if patience:
        callbacks.append(
            xgb.callback.EarlyStopping(rounds=patience, metric_name=_METRIC, data_name=_DATA, maximize=False)
        )
    booster = xgb.train(
        params, matrix,
        num_boost_round=rounds, evals=[(matrix, _DATA)], custom_metric=judge, verbose_eval=False, callbacks=callbacks,
    )  # fmt: skip
    trained = booster.num_boosted_rounds()
    kept = ~held_out
    return FoldResult(
        rounds=booster.best_iteration + 1 if patience else trained,
        trained_rounds=trained,
        stopped_early=trained < rounds,
        train_logloss=log_loss(judge.scores[kept], positive[kept], weight[kept]),
        held_out_logloss=judge.loss,
        scores=judge.scores,
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
