"""The missing-value policy of each feature, chosen by what the matrix costs: it decides more memory than any splitting.

* native: XGBoost's own; a split learns which way missing cells go. One missing cell more than doubles a dense matrix.
* zero-as-missing: the zeros of mostly-zero counts are left out too. A split loses nothing by it: zero is the end of
  their range, and missing cells can go either way. Trees grow several times faster, where most cells drop out; for that
  it may take more memory than the others, as long as the budget has it.
* sentinel: missing cells get a value and a bin of their own below all others, and the matrix stays dense. A split can
  set them apart or send them left, with the small values; right, with the large, only by two splits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metabatch.data.layout import cell_bytes
from metabatch.rundir.manifests import MissingPolicy

# A feature may take zero-as-missing when at least this part of it is zero.
_SPARSE_FEATURE = 0.5
# The matrix takes it when it is cheapest, or when half of all cells drop out (several times faster trees), at no
# more than twice the bytes and within the budget.
_SPARSE_MATRIX, _PRICE_OF_SPEED = 0.5, 2.0
# The sentinel has to save this part of the bytes: it is not quite what the data says.
_SENTINEL_SAVES = 0.25


@dataclass(frozen=True)
class Seen:
    """What a scan saw of a feature: the parts of its cells that are missing and zero, and its smallest value."""

    missing: float
    zero: float
    low: float


@dataclass(frozen=True)
class Wish:
    """What the plan asks for.

    native : leave all cells as they are. rooms : bytes per cell that the budget has for a matrix: of all genes first,
    then of an instance; the first that is enough for the cheapest layout says what speed may cost.
    """

    native: bool = False
    rooms: tuple[float, ...] = (math.inf,)


@dataclass(frozen=True)
class Policies:
    """Per feature, in order: the policy, the stored part of its cells, and the sentinel (None with other policies)."""

    policies: tuple[MissingPolicy, ...]
    densities: tuple[float, ...]
    sentinels: tuple[float | None, ...]
    notes: tuple[str, ...]


def choose_policies(features: Sequence[Seen], most_bins: int, wish: Wish) -> Policies:
    """The policies under which the matrix of these features is cheapest, or fast for a price.

    Parameters
    ----------
    most_bins : int
        Bins of the feature that has most.
    """
    ways = {way: _policies(features, way) for way in ("native", "zero-as-missing", "sentinel")}
    cost = {way: _cost(_densities(features, policies), most_bins) for way, policies in ways.items()}
    chosen, notes = "native", list[str]()
    if not wish.native:
        if cost["sentinel"] <= (1 - _SENTINEL_SAVES) * cost["native"] and _sentinels(features, ways["sentinel"]):
            chosen = "sentinel"
        if cost["zero-as-missing"] < cost[chosen]:
            chosen = "zero-as-missing"
        elif _faster(features, ways["zero-as-missing"]):
            price = f"{cost['zero-as-missing']:.1f} instead of {cost[chosen]:.1f} bytes per cell"
            room = next((room for room in wish.rooms if cost[chosen] <= room), 0.0)
            if cost["zero-as-missing"] > _PRICE_OF_SPEED * cost[chosen]:
                notes.append(f"zeros are stored: left out as missing they would cost {price}")
            elif cost["zero-as-missing"] > room:
                notes.append(f"zeros are stored: left out as missing trees would grow faster, but at {price} they "
                             "do not fit the budget")  # fmt: skip
            else:
                chosen = "zero-as-missing"
                notes.append(f"zeros are left out as missing at {price}: trees grow faster, and the budget has it")
    policies = ways[chosen]
    return Policies(
        policies, _densities(features, policies), _sentinels(features, policies) or (None,) * len(features),
        (*_notes(policies, cost), *notes),
    )  # fmt: skip


def _faster(features: Sequence[Seen], policies: Sequence[MissingPolicy]) -> bool:
    return sum(_densities(features, policies)) <= (1 - _SPARSE_MATRIX) * len(features)


def sentinel_below(low: float) -> float:
    """A float32 that is clearly below `low`, the smallest value, and below 0; minus infinity when there is none."""
    low = min(low, 0.0)  # a k-mer that another table lacks counts as 0
    with np.errstate(over="ignore"):
        return float(np.float32(low) - np.float32(max(1.0, abs(low))))


def _policies(features: Sequence[Seen], way: str) -> tuple[MissingPolicy, ...]:
    def of(f: Seen) -> MissingPolicy:
        if way == "zero-as-missing" and f.low >= 0 and f.missing == 0 and f.zero >= _SPARSE_FEATURE:
            return "zero-as-missing"
        if way == "sentinel" and f.missing > 0:
            return "sentinel"
        return "native"

    return tuple(of(f) for f in features)


def _densities(features: Sequence[Seen], policies: Sequence[MissingPolicy]) -> tuple[float, ...]:
    def of(f: Seen, policy: MissingPolicy) -> float:
        return 1.0 if policy == "sentinel" else 1 - f.missing - (f.zero if policy == "zero-as-missing" else 0)

    return tuple(of(f, p) for f, p in zip(features, policies, strict=True))


def _cost(densities: Sequence[float], most_bins: int) -> float:
    return cell_bytes(densities, has_missing=min(densities) < 1, most_bins=most_bins)


def _sentinels(features: Sequence[Seen], policies: Sequence[MissingPolicy]) -> tuple[float | None, ...] | None:
    """A sentinel for each feature that wants one; None when one of them has no room below its values."""
    found = tuple(
        sentinel_below(f.low) if policy == "sentinel" else None for f, policy in zip(features, policies, strict=True)
    )
    return found if all(s is None or np.isfinite(s) for s in found) else None


def _notes(policies: Sequence[MissingPolicy], cost: dict[str, float]) -> tuple[str, ...]:
    found = []
    if zeros := policies.count("zero-as-missing"):
        found.append(f"{zeros} feature(s) are mostly 0: zeros are stored as missing")
    if gaps := policies.count("sentinel"):
        found.append(
            f"{gaps} feature(s) have missing cells: they get a bin of their own below all values, at "
            f"{cost['sentinel']:.1f} instead of {cost['native']:.1f} bytes per cell (--missing-policy native: left out)"
        )
    return tuple(found)
