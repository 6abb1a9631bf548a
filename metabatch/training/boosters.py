"""Training on the one matrix: classes by other gradients, folds by 0/1 weights.

A row with weight 0 is exactly an excluded row (FIELD_NOTES; tests/integration/test_training.py), so
cross-validation needs no second matrix, and the held-out rows' scores come from the same matrix too. The rows of each
tree are drawn in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import xgboost as xgb

from metabatch.options import Options
from metabatch.rundir.manifests import Booster
from metabatch.training.checkpoints import Saved, Slot, booster_blobs
from metabatch.training.gradients import Gradients, RowKeys
from metabatch.training.judge import SIZES, Judge, log_loss
from metabatch.training.sizes import chosen_size
from metabatch.training.team import Team, TeamSlot

_FACTS = ("rounds", "trained_rounds", "stopped_early", "train_logloss", "held_out_logloss")
_ARRAYS = ("scores", "curve_train", "curve_held_out")
_ALONE = Team()
_NO_SIZES = np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class FoldResult:
    """A fold model's outcome.

    rounds : trees up to the best round, or of a size that was chosen.
    scores : of the held-out rows, float32.
    curve_train, curve_held_out : float32, shape (trained_rounds,): weighted log loss after each round; of the training
        rows from `judge.CURVE_ROWS` of them at most.
    model : the trees up to the best round as UBJSON, when they were to be kept.
    size_trees, size_ap : float32: AP of the held-out rows at some numbers of trees, when it was asked for.
    """

    rounds: int
    trained_rounds: int
    stopped_early: bool
    train_logloss: float
    held_out_logloss: float
    scores: np.ndarray
    curve_train: np.ndarray
    curve_held_out: np.ndarray
    model: bytes | None = None
    size_trees: np.ndarray = field(default_factory=lambda: _NO_SIZES)
    size_ap: np.ndarray = field(default_factory=lambda: _NO_SIZES)


def booster_params(options: Options, settings: Booster, threads: int, seed: int) -> dict[str, object]:
    """XGBoost parameters of every booster of the run; the device is decided by then. `subsample` is for `Gradients`."""
    return {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "device": options.device,
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


def train_fold(
    matrix: xgb.DMatrix, params: dict[str, object], positive: np.ndarray, weight: np.ndarray, held_out: np.ndarray,
    rounds: int, patience: int, on_round: Callable[[], None], slot: Slot | TeamSlot | None = None, *,
    keep: bool = False, soft: np.ndarray | None = None, sizes: Sequence[int] = (), draw: RowKeys | None = None,
    team: Team = _ALONE,
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
    slot : Slot, optional
        Where the booster is kept while it grows, and the outcome afterwards; what lies there is used.
    keep : bool
        Keep the model, up to its best round, in the outcome.
    soft : ndarray of float32, shape (n,), optional
        Labels in [0, 1] to train on instead of `positive`, by which the fold is judged all the same.
    sizes : sequence of int
        Numbers of trees at which the AP is wanted, and of which one is chosen: scores and model are of that size.
    draw : RowKeys, optional
        What the rows of a tree are drawn by (`subsample`); None: their order.
    team : Team
        `matrix` holds this worker's rows; the arrays are of the rows of all, and so is the outcome.
    """
    saved = slot.read() if slot else None
    if saved is not None and saved.finished:
        return _known(saved)
    every_held_out, mine = held_out, team.rows
    gradients = Gradients(params, positive if soft is None else soft, weight, held_out, draw=draw, mine=mine)
    positive, weight, held_out = positive[mine], weight[mine], held_out[mine]
    judge = Judge(positive, weight, held_out, patience, sizes, team)
    booster = _begin(gradients.params, matrix, saved)
    if saved is not None:
        judge.resume(saved, lambda rounds: booster.predict(matrix, iteration_range=(0, rounds)))
    del saved
    while (trained := booster.num_boosted_rounds()) < rounds and not judge.is_over(trained):
        gradients.grow(booster, matrix, trained)
        judge.look(booster.predict(matrix), trained + 1)
        on_round()
        if slot:
            facts = {"rounds_done": trained + 1, "rounds": judge.rounds, "held_out_logloss": judge.loss}
            slot.keep_growing(functools.partial(booster_blobs, booster), facts, judge.growing)
    judge.close()
    if sizes and (chosen := chosen_size(*judge.size_arrays())) < judge.rounds:
        judge.cut(booster.predict(matrix, iteration_range=(0, chosen)), chosen)
    kept = ~held_out
    outcome = FoldResult(
        rounds=judge.rounds,
        trained_rounds=trained,
        stopped_early=trained < rounds,
        train_logloss=log_loss(judge.scores[kept], positive[kept], weight[kept], team),
        held_out_logloss=judge.loss,
        scores=team.joined(judge.scores[held_out], every_held_out),
        **judge.curves(),
        **judge.sizes(),
        model=bytes(booster[: judge.rounds].save_raw("ubj")) if keep else None,
    )
    if slot:
        facts = {n: getattr(outcome, n) for n in _FACTS} | {"rounds_done": trained}
        arrays = {n: getattr(outcome, n) for n in _ARRAYS} | judge.sizes()
        slot.keep_finished(facts, model=outcome.model, arrays=arrays)
    return outcome


def train_final(
    matrix: xgb.DMatrix, params: dict[str, object], positive: np.ndarray, weight: np.ndarray | None,
    rounds: int, on_round: Callable[[], None], slot: Slot | TeamSlot | None = None, *,
    soft: np.ndarray | None = None, draw: RowKeys | None = None, team: Team = _ALONE,
) -> xgb.Booster:  # fmt: skip
    """Train on all rows for a fixed number of rounds.

    `weight` None: ones. `slot`, `soft`, `draw`, `team`: as
    in `train_fold`.
    """
    saved = slot.read() if slot else None
    if saved is not None and saved.finished:
        return xgb.Booster({"nthread": params["nthread"]}, model_file=bytearray(saved.blobs["model"]))
    gradients = Gradients(params, positive if soft is None else soft, weight, draw=draw, mine=team.rows)
    booster = _begin(gradients.params, matrix, saved)
    del saved
    while (trained := booster.num_boosted_rounds()) < rounds:
        gradients.grow(booster, matrix, trained)
        on_round()
        if slot:
            slot.keep_growing(functools.partial(booster_blobs, booster), {"rounds_done": trained + 1})
    booster.reset()  # lets go of histograms and caches, which would pile up class by class
    if slot:
        slot.keep_finished({"rounds_done": rounds}, model=booster.save_raw("ubj"))
    return booster


def _begin(params: dict[str, object], matrix: xgb.DMatrix, saved: Saved | None) -> xgb.Booster:
    """A new booster, or a growing one as it was kept; its configuration holds the state of its random numbers."""
    booster = xgb.Booster(params, [matrix])
    if saved is not None:
        booster.load_model(bytearray(saved.blobs["model"]))
        booster.load_config(saved.blobs["config"].decode())
        booster.set_param({"nthread": params["nthread"]})
    return booster


def _known(saved: Saved) -> FoldResult:
    facts = saved.facts
    return FoldResult(
        rounds=int(facts["rounds"]), trained_rounds=int(facts["trained_rounds"]),
        stopped_early=bool(facts["stopped_early"]), train_logloss=saved.number("train_logloss"),
        held_out_logloss=saved.number("held_out_logloss"),
        **{n: saved.array(n) for n in (*_ARRAYS, *(s for s in SIZES if s in saved.blobs))},
        model=saved.blobs.get("model"),
    )  # fmt: skip


def recommended_rounds(best: list[int], limit: int) -> int:
    """mean + sd of the folds' best rounds, at most `limit` (SPEC 4.3); `limit` without folds."""
    if not best:
        return limit
    return int(min(limit, np.ceil(np.mean(best) + np.std(best))))
