"""Which features an ensemble makes its decisions by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xgboost as xgb

from metabatch.ensemble.estimator import MetaModel
from metabatch.models.member import Member, MemberInParts


def carrying_features(model: MetaModel, share: float) -> list[str]:
    """The fewest features, in matrix order, that carry `share` of the gain of all splits.

    Every class of every member counts the same, whatever the scale of its gains.

    Parameters
    ----------
    share : float
        0 < share <= 1. With 1, every feature of which any tree makes use.
    """
    gains = np.mean([_gain_shares(booster, model) for booster in _boosters(model.members)], axis=0)
    order = np.argsort(-gains, kind="stable")
    carried = np.cumsum(gains[order])
    # The sum of all is 1 but for rounding.
    enough = int(np.searchsorted(carried, share * carried[-1])) + 1
    taken = {i for i in order[:enough] if gains[i] > 0}
    return [name for i, name in enumerate(model.feature_names) if i in taken]


def _boosters(members: Iterable[Member | MemberInParts]) -> list[xgb.Booster]:
    found: list[xgb.Booster] = []
    for member in members:
        parts = member.parts if isinstance(member, MemberInParts) else [member]
        found += [booster for part in parts for booster in part.boosters.values()]
    return found


def _gain_shares(booster: xgb.Booster, model: MetaModel) -> np.ndarray:
    """Each feature's part of the gain of a booster's splits, shape (n_features,); zeros where nothing is split."""
    found = booster.get_score(importance_type="total_gain")
    gains = np.array([float(np.sum(found.get(name, 0.0))) for name in model.preprocessor.matrix_names])
    total = gains.sum()
    return gains / total if total > 0 else gains
