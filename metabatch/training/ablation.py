"""Short boosters on subsets of the features, grown on the one matrix: what is a group of features worth?

XGBoost draws the columns of a tree by weight. With weight 0 for the features that a variant does not have and a
``colsample_bytree`` that draws exactly as many as it has, every tree sees all of its features and no other, so that the
trees are those of a table without the others, bit for bit (tests/unit/test_ablation.py). No second matrix is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xgboost as xgb

from metabatch.analysis.ablation import VARIANTS, Variant, feature_groups
from metabatch.rundir.manifests import Feature, Plan
from metabatch.training.boosters import booster_params
from metabatch.training.gradients import Gradients
from metabatch.training.matrix import Rows
from metabatch.training.team import Team

# All variants together may cost this part of the rounds that the instance was trained for; each gets so many.
SHARE, FEWEST_ROUNDS, MOST_ROUNDS = 0.05, 10, 100
# Few rounds need large steps.
LEARNING_RATE = 0.3
_ALONE = Team()
# XGBoost's keys are log(u) / max(weight, 1e-6), largest first: with a weight of 1 a feature of weight 0 is drawn once
# in a while (seen: once in 1,500 trees of 60 features), with this one never.
_DRAWN = np.float32(1e30)


def grow_variants(
    matrix: xgb.DMatrix, rows: Rows, fold: np.ndarray, number: int, plan: Plan, features: Sequence[Feature],
    threads: int, trained_rounds: int, check: Callable[[], None], team: Team = _ALONE,
) -> list[Variant]:  # fmt: skip
    """Grow every class with every variant of the features, and score the rows of one fold.

    All variants are grown for the same number of rounds with the same settings and seeds: the plan's, but all rows and
    all features of the variant in every tree, so that only the features differ.

    Parameters
    ----------
    fold : ndarray of int, shape (n,)
        Fold of each row.
    number : int
        The fold that is held out.
    features : sequence of Feature
        In matrix order.
    trained_rounds : int
        Boosting rounds that the instance was trained for in all.
    check : callable
        Called after every round; raises when the work is to stop.
    team : Team
        Whose rows `matrix` holds; the arrays are of the rows of all.

    Returns
    -------
    list of Variant
        In order of `VARIANTS`. Of those with the features of an earlier one, or with none, scores are None.
    """
    held_out = fold == number
    chosen = _chosen(features, plan.columns.scores)
    twins = _twins(chosen)
    grown = [name for name in chosen if twins[name] is None and chosen[name].any()]
    classes = plan.columns.classes
    rounds = _rounds(trained_rounds, len(grown) * len(classes))
    variants = []
    with _restored(matrix):
        for name, allowed in chosen.items():
            scores = None
            if name in grown:
                scores = np.empty((int(held_out.sum()), len(classes)), dtype=np.float32)
                for code in range(len(classes)):
                    params = _params(plan, threads, code)
                    gradients = Gradients(params, rows.label == code, rows.weight, held_out, mine=team.rows)
                    booster = grow(matrix, gradients, allowed, rounds, check)
                    own = booster.predict(matrix)[held_out[team.rows]]  # from the cache of its training
                    scores[:, code] = team.joined(own, held_out)
                    booster.reset()
            variants.append(Variant(name=name, features=int(allowed.sum()), same_as=twins[name], rounds=rounds,
                                    learning_rate=_learning_rate(plan), scores=scores))  # fmt: skip
    return variants


def grow(
    matrix: xgb.DMatrix, gradients: Gradients, allowed: np.ndarray, rounds: int, check: Callable[[], None]
) -> xgb.Booster:
    """Grow a booster on some of the features, bool, shape (features,); the matrix keeps their weights.

    Raises
    ------
    RuntimeError
        A tree used another feature: this XGBoost draws columns in another way than known.
    """
    count, total = int(allowed.sum()), len(allowed)
    if count == total:
        matrix.set_info(feature_weights=np.empty(0, dtype=np.float32))
        share = 1.0
    else:
        matrix.set_info(feature_weights=np.where(allowed, _DRAWN, np.float32(0)))
        share = (count + 0.5) / total  # XGBoost draws int(share * total), in float32
    booster = xgb.Booster({**gradients.params, "colsample_bytree": share}, [matrix])
    for done in range(rounds):
        gradients.grow(booster, matrix, done)
        check()
    names = matrix.feature_names or [f"f{i}" for i in range(total)]
    used = booster.get_score(importance_type="weight").keys()
    odd = set(used) - {name for name, may in zip(names, allowed, strict=True) if may}
    if odd:
        raise RuntimeError(f"xgboost {xgb.__version__} used features that were to be left out: {sorted(odd)[:5]}")
    return booster


def _params(plan: Plan, threads: int, code: int) -> dict[str, object]:
    params = booster_params(plan.options, plan.booster, threads, plan.seed + code)
    return params | {"subsample": 1.0, "learning_rate": _learning_rate(plan)}


def _learning_rate(plan: Plan) -> float:
    return max(plan.options.learning_rate, LEARNING_RATE)


def _chosen(features: Sequence[Feature], scores: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Which features each variant has, bool, shape (features,)."""
    group = np.array(feature_groups(features, scores))
    return {name: np.isin(group, groups) for name, groups in VARIANTS.items()}


def _twins(chosen: Mapping[str, np.ndarray]) -> dict[str, str | None]:
    """For each variant an earlier one with the same features, if any."""
    first: dict[bytes, str] = {}
    found: dict[str, str | None] = {}
    for name, allowed in chosen.items():
        earlier = first.setdefault(allowed.tobytes(), name)
        found[name] = earlier if earlier != name else None
    return found


def _rounds(trained_rounds: int, boosters: int) -> int:
    return int(np.clip(SHARE * trained_rounds / max(1, boosters), FEWEST_ROUNDS, MOST_ROUNDS))


@contextlib.contextmanager
def _restored(matrix: xgb.DMatrix) -> Iterator[None]:
    """The weights of the features as they were, afterwards; also when the work is stopped."""
    features = matrix.get_float_info("feature_weights")
    try:
        yield
    finally:
        matrix.set_info(feature_weights=features)
