"""bundle.json: the model that `consolidate` makes of a run's instances."""

from __future__ import annotations

from typing import Any

import msgspec

from metabatch.options import CombinationMethod
from metabatch.rundir.layout import FORMAT_VERSION
from metabatch.rundir.manifests import Columns, Feature, Lowered, Manifest


class BundleMember(Manifest, frozen=True, kw_only=True):
    index: int
    genes: int
    rows: int


class Combination(Manifest, frozen=True, kw_only=True):
    """How members are made one model (`metabatch.models.pooling`).

    weights : of each member in the mean of probabilities; a member of weight 0 is not asked.
    coefficients, intercept : of a softmax over the members' log-probabilities, shapes (k, m * k) and (k,), which then
        stands instead of the mean (logit-mean, stacking); empty without.
    feature, edges, routes : of routing by gene: a feature that is the same in all rows of a gene, the values at which
        the next route begins, ascending, and each route's weights, shape (len(edges) + 1, m). `weights` are then for
        genes without that feature.
    note : why this one.
    """

    method: CombinationMethod
    weights: tuple[float, ...]
    coefficients: tuple[tuple[float, ...], ...] = ()
    intercept: tuple[float, ...] = ()
    feature: str = ""
    edges: tuple[float, ...] = ()
    routes: tuple[tuple[float, ...], ...] = ()
    note: str = ""


class Bundle(Manifest, frozen=True, kw_only=True):
    """ensemble/bundle.json: everything a prediction needs besides the boosters.

    strategy : of the plan, or "distilled".
    thresholds : class -> threshold of the meta-model's score for a call; empty without out-of-fold scores.
    missing : planned instances that it was made without (`consolidate --allow-missing`).
    recipe : as in the plan; `predict --genome` follows it.
    """

    format_version: int = FORMAT_VERSION
    metabatch_version: str
    xgboost_version: str
    fingerprint: str
    strategy: str
    combination: Combination
    columns: Columns
    features: tuple[Feature, ...]
    members: tuple[BundleMember, ...]
    missing: tuple[int, ...] = ()
    lowered: tuple[Lowered, ...] = ()
    thresholds: dict[str, float] = msgspec.field(default_factory=dict)
    recipe: dict[str, Any] | None = None
