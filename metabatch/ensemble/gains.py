"""Which features an ensemble makes its decisions by."""

from __future__ import annotations

import numpy as np
import xgboost as xgb

from metabatch.ensemble.estimator import MetaModel
from metabatch.models.linear import LinearMember
from metabatch.models.member import AnyMember, Member, MemberInParts


def carrying_features(model: MetaModel, share: float, least: int) -> list[str]:
    """The fewest features, in matrix order, that carry `share` of the gain of all splits.

    The classes of a member count the same, whatever the scale of their gains; so do the parts of a member trained in
    parts; members count as they are weighted in the mean.

    Parameters
    ----------
    share : float
        0 < share <= 1. With 1, every feature of which any tree makes use.
    least : int
        Features that are taken in any case, where so many are used: gain says little of a feature that stands in for
        a strong one where that one fails.

    Returns
    -------
    list of str
        None where no tree splits anything, or where a member has no trees.
    """
    gains = np.average([_member(m, model) for m in model.members], axis=0, weights=model.bundle.combination.weights)
    order = np.argsort(-gains, kind="stable")
    carried = np.cumsum(gains[order])
    # The sum of all is 1 but for rounding.
    enough = int(np.searchsorted(carried, share * carried[-1])) + 1
    taken = {i for i in order[: max(enough, least)] if gains[i] > 0}
    return [name for i, name in enumerate(model.feature_names) if i in taken]


def _member(member: AnyMember, model: MetaModel) -> np.ndarray:
    parts = member.parts if isinstance(member, MemberInParts) else [member]
    return np.mean([_part(part, model) for part in parts], axis=0)


def _part(part: Member | LinearMember, model: MetaModel) -> np.ndarray:
    if isinstance(part, LinearMember):
        return np.zeros(len(model.feature_names))
    return np.mean([_gain_shares(booster, model) for booster in part.boosters.values()], axis=0)


def _gain_shares(booster: xgb.Booster, model: MetaModel) -> np.ndarray:
    """Each feature's part of the gain of a booster's splits, shape (n_features,); zeros where nothing is split."""
    found = booster.get_score(importance_type="total_gain")
    gains = np.array([float(np.sum(found.get(name, 0.0))) for name in model.preprocessor.matrix_names])
    total = gains.sum()
    return gains / total if total > 0 else gains
