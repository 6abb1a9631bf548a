"""Cross-validation of one instance on its one matrix: out-of-fold scores, fold metrics, calibration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost as xgb

from metabatch.metrics.classification import all_metrics, class_metrics
from metabatch.models.calibration import Calibration
from metabatch.models.choice import fit_calibration
from metabatch.models.linear import LinearMember
from metabatch.models.member import Member
from metabatch.options import Options
from metabatch.rundir.manifests import Plan
from metabatch.training.boosters import FoldResult, booster_params, recommended_rounds, train_fold
from metabatch.training.checkpoints import Slot
from metabatch.training.matrix import Rows
from metabatch.training.sizes import size_record, sizes_to_try
from metabatch.training.team import Team, TeamSlot

if TYPE_CHECKING:
    from metabatch.analysis.ablation import Variant

log = logging.getLogger(__name__)
_ALONE = Team()
_CURVE_POINTS = 100  # of a fold in metrics.json


@dataclass
class CrossValidation:
    """raw, meta : out-of-fold scores, shape (n, k): booster output; calibrated and normalised (by `cross_fitted`).

    folds : per class, one result a fold (scores dropped). rounds : trees of the final models, per class.
    sizes : of a student, per class: the AP at some numbers of trees, of which one was chosen.
    kept : per class a fold and its model (UBJSON, up to its best round), which did not train on that fold's rows; the
        same fold for all classes where one can judge them all, none for a class that no fold can judge.
    """

    raw: np.ndarray
    meta: np.ndarray
    fold: np.ndarray
    folds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    @property
    def kept_fold(self) -> int:
        """The fold that most kept models are of; the lowest one where none is kept."""
        folds = [number for number, _ in self.kept.values()]
        return max(folds, key=folds.count) if folds else int(self.fold.min())


@dataclass(frozen=True)
class Fitted:
    """What came of the rows of an instance, or of one part of them; `cv` is None without folds.

    rounds : trees of the final models, per class; epochs of linear ones.

    variants : of the ablation, if it was asked for.
    """

    rows: Rows
    cv: CrossValidation | None
    member: Member | LinearMember
    rounds: dict[str, int]
    variants: Sequence[Variant] = ()


def booster_seed(plan_seed: int, instance: int, code: int, fold: int) -> int:
    """A seed per booster, so that boosters do not share their row and column draws. `fold` -1: the final one."""
    return (plan_seed * 1_000_003 + instance * 10_007 + code * 101 + fold + 1) % (2**31 - 1)


def cross_validate(
    matrix: xgb.DMatrix, rows: Rows, fold: np.ndarray, plan: Plan, instance: int, threads: int,
    on_round: Callable[[], None], on_saved: Callable[[int], None], on_fold: Callable[[], None],
    slot_of: Callable[[int, int, Mapping[str, object]], Slot | TeamSlot], *,
    team: Team = _ALONE, prefer: Sequence[int] = (),
) -> CrossValidation:  # fmt: skip
    """Train every class on every fold.

    Parameters
    ----------
    fold : ndarray of int, shape (n,)
        Fold of each row.
    on_saved : callable
        Told the rounds that early stopping saved.
    on_fold : callable
        Told when a fold of a class is through.
    slot_of : callable
        Class, fold, parameters -> where its booster is kept.
    team : Team
        Whose rows `matrix` holds; the arrays are of the rows of all.
    prefer : sequence of int
        Folds, the one whose model is best kept for the analyses first; others come after, by number.
    """
    options, classes = plan.options, plan.columns.classes
    raw = np.full((len(rows), len(classes)), np.nan, dtype=np.float32)
    result = CrossValidation(raw=raw, meta=raw, fold=fold)
    orders = [_folds_in_order(fold, rows.label == code, rows.weight) for code in range(len(classes))]
    keep = _folds_to_keep(orders, prefer)
    for code, name in enumerate(classes):
        positive = rows.label == code
        results: dict[int, dict[str, Any]] = {}
        best: list[int] = []
        if plan.teacher is not None:  # the fold that chooses the size comes first
            orders[code].sort(key=lambda item, code=code: item[0] != keep[code])  # type: ignore[misc]
        for number, judges in orders[code]:
            held_out = fold == number
            params = booster_params(options, plan.booster, threads, booster_seed(plan.seed, instance, code, number))
            # No held-out loss to stop by: as many trees as the other folds found best.
            limit = options.n_estimators if judges else recommended_rounds(best, options.n_estimators)
            patience = options.early_stopping_patience if judges else 0
            if name in result.sizes:
                limit, patience = result.sizes[name]["chosen"], 0
            slot = slot_of(code, number, params)
            outcome = train_fold(
                matrix, params, positive, rows.weight, held_out, limit, patience, on_round, slot,
                keep=number == keep[code], soft=rows.soft_of(code),
                sizes=sizes_to_try(limit) if number == keep[code] and plan.teacher is not None else (),
                draw=rows.keys, team=team,
            )  # fmt: skip
            if len(outcome.size_trees):
                result.sizes[name] = size_record(outcome.size_trees, outcome.size_ap, number)
            if outcome.model is not None:
                result.kept[name] = number, outcome.model
            if judges:
                best.append(outcome.rounds)
            on_saved(options.n_estimators - outcome.trained_rounds)
            raw[held_out, code] = outcome.scores
            log.debug(
                "%s, fold %d: best of %d rounds is %d, log loss %.5f trained, %.5f held out",
                name, number, outcome.trained_rounds, outcome.rounds, outcome.train_logloss, outcome.held_out_logloss,
            )  # fmt: skip
            record = fold_record(number, outcome, positive, rows.weight, held_out)
            if name in result.sizes:
                record["stopped_early"] = outcome.trained_rounds < options.n_estimators
            results[number] = record if judges else record | {"best_rounds": None, "stopped_early": False}
            del outcome
            on_fold()
        result.folds[name] = [results[number] for number in sorted(results)]
        size = result.sizes.get(name)
        result.rounds[name] = recommended_rounds(best, options.n_estimators) if size is None else size["chosen"]
    return result


def _folds_in_order(fold: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> list[tuple[int, bool]]:
    """Folds with rows, and whether each can judge a model (it holds the class and others): those first."""
    found = []
    for number in np.unique(fold):
        here = fold == number
        total, hits = weight[here].sum(dtype=np.float64), weight[here & positive].sum(dtype=np.float64)
        found.append((int(number), bool(0 < hits < total)))
    return sorted(found, key=lambda f: not f[1])


def _folds_to_keep(orders: Sequence[Sequence[tuple[int, bool]]], prefer: Sequence[int]) -> list[int | None]:
    """For every class the fold whose model is kept: the first that can judge all classes, or else this one."""
    judging = [{number for number, judges in order if judges} for order in orders]
    common = set.intersection(*judging)
    place = {number: rank for rank, number in enumerate(prefer)}
    return [min(common or mine, key=lambda n: (place.get(n, len(place)), n), default=None) for mine in judging]


def fold_record(
    number: int, outcome: FoldResult, positive: np.ndarray, weight: np.ndarray, held_out: np.ndarray
) -> dict[str, Any]:
    """What metrics.json says of a fold; a linear model's rounds are epochs."""
    trained = weight[~held_out].sum(dtype=np.float64)
    hits = weight[~held_out & positive].sum(dtype=np.float64)
    return {
        "fold": number,
        "best_rounds": outcome.rounds,
        "trained_rounds": outcome.trained_rounds,
        "stopped_early": outcome.stopped_early,
        "train_log_loss": outcome.train_logloss,
        "held_out_log_loss": outcome.held_out_logloss,
        "train_prevalence": float(hits / trained) if trained else None,
        "curve": _thinned(outcome),
        **class_metrics(outcome.scores, positive[held_out], weight[held_out]),
    }


def _thinned(outcome: FoldResult) -> dict[str, list[float]]:
    """The curves at no more than `_CURVE_POINTS` rounds (counted from 1), evenly spaced; the best one is among them.

    Five digits: the weighted log loss of a rare class is of the order of 1e-5.
    """
    spaced = np.linspace(1, outcome.trained_rounds, min(outcome.trained_rounds, _CURVE_POINTS - 1)).round()
    rounds = np.union1d(spaced.astype(np.int64), [outcome.rounds])
    rounds = rounds[rounds > 0]
    return {
        "rounds": rounds.tolist(),
        "train": [float(f"{v:.5g}") for v in outcome.curve_train[rounds - 1]],
        "held_out": [float(f"{v:.5g}") for v in outcome.curve_held_out[rounds - 1]],
    }


def calibrate(
    raw: np.ndarray, rows: Rows, classes: Sequence[str], options: Options, fold: np.ndarray,
    chosen: np.ndarray | None = None,
) -> Calibration:  # fmt: skip
    """The calibration fitted on out-of-fold scores (of the `chosen` rows only, when given)."""
    pick = slice(None) if chosen is None else chosen
    return fit_calibration(
        raw[pick], rows.label[pick], rows.weight[pick], classes, options.calibration, options.prior, fold[pick]
    )


def cross_fitted(cv: CrossValidation, rows: Rows, plan: Plan) -> np.ndarray:
    """Calibrated out-of-fold probabilities; each fold by a calibration fitted on the other folds' genes.

    With `auto` the method, too, is chosen among and by the other folds: nothing is judged on rows that chose it.
    """
    meta = np.empty(cv.raw.shape, dtype=np.float64)
    for number in np.unique(cv.fold):
        held_out = cv.fold == number
        others = calibrate(cv.raw, rows, plan.columns.classes, plan.options, cv.fold, ~held_out)
        meta[held_out] = others.apply(cv.raw[held_out])
    return meta


def instance_metrics(parts: Sequence[Fitted], plan: Plan) -> dict[str, Any]:
    """metrics.json of an instance: out-of-fold metrics per class, folds beneath, before and after calibration.

    `parts`: one, or several when its genes had to be trained in parts; folds then say which part they are of.
    """
    classes = plan.columns.classes
    unit = "epochs" if isinstance(parts[0].member, LinearMember) else "trees"
    document: dict[str, Any] = {
        "format_version": 1,
        "weighted_by": plan.columns.weight,
        "rows": sum(len(p.rows) for p in parts),
        "genes": sum(len(p.rows.genes) for p in parts),
        unit: {c: sum(p.rounds[c] for p in parts) for c in classes},
    }
    if len(parts) > 1:
        document["parts"] = [{"genes": len(p.rows.genes), "rows": len(p.rows), "trees": p.rounds} for p in parts]
    crossed = [p.cv for p in parts if p.cv is not None]
    if plan.teacher is not None and crossed:
        document["sizes"] = crossed[0].sizes if len(parts) == 1 else [cv.sizes for cv in crossed]
    if not crossed:
        return document | {"classes": {}, "note": "no cross-validation (--n-folds 0): nothing here is out of fold"}
    label = _joined([p.rows.label for p in parts])
    weight = _joined([p.rows.weight for p in parts])
    meta = all_metrics(_joined([cv.meta for cv in crossed]), label, weight, classes)
    raw = _joined([cv.raw for cv in crossed])
    for code, name in enumerate(classes):
        folds = [
            ({"part": number} if len(parts) > 1 else {}) | fold
            for number, cv in enumerate(crossed)
            for fold in cv.folds[name]
        ]
        before = class_metrics(raw[:, code], label == code, weight)
        meta["classes"][name] |= {"before_calibration": before, "folds": folds}
    return document | {"scored": "out of fold, calibrators cross-fitted"} | meta


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all; the array itself when it is the only one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
