"""Memory tiers (the notes' figures): what a profile lowers or raises, and the record of it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from metabatch.options import Options
from metabatch.rundir.manifests import Lowered

GIB = 1 << 30
# Before the name of an analysis, where the record says that it was left out.
DROPPED = "analyses: "
_LOW = {"genes_per_instance": 500, "n_estimators": 400, "diagnostic_rows": 5_000}
WITHOUT_SHAP = "low, without SHAP"
# profile -> (memory below which `auto` takes it, settings)
TIERS: dict[str, tuple[float, dict[str, int]]] = {
    WITHOUT_SHAP: (4, _LOW),
    "low": (8, _LOW),
    "standard": (32, {"genes_per_instance": 1200, "n_estimators": 800, "diagnostic_rows": 25_000}),
    "high": (float("inf"), {"genes_per_instance": 2000, "n_estimators": 1200, "diagnostic_rows": 50_000}),
}


def tier_of(options: Options, memory_bytes: int) -> str:
    """The tier of `--profile`: itself, or for ``auto`` the one of this much memory."""
    if options.profile != "auto":
        return options.profile
    return next(n for n, (below, _) in TIERS.items() if memory_bytes < below * GIB)


def apply_profile(options: Options, explicit: Collection[str], name: str) -> tuple[Options, tuple[Lowered, ...]]:
    """Options with the tier's values where the user gave none, and what differs from the defaults.

    Parameters
    ----------
    explicit : collection of str
        Fields the user gave; they win over the profile.
    name : str
        As `tier_of` gives it.
    """
    if name == "default":
        return options, ()
    changes = {k: v for k, v in TIERS[name][1].items() if k not in explicit}
    defaults, because = Options(), f"--profile {options.profile} ({name})"
    lowered = tuple(
        Lowered(option=k, default=getattr(defaults, k), value=v, because=because)
        for k, v in sorted(changes.items())
        if v != getattr(defaults, k)
    )
    changed = msgspec.structs.replace(options, **changes)
    if name != WITHOUT_SHAP or "analyses" in explicit:
        return changed, lowered
    leaner, dropped = without(changed, ("shap",), because)
    return leaner, (*lowered, *dropped)


def without(options: Options, analyses: Collection[str], because: str) -> tuple[Options, tuple[Lowered, ...]]:
    """Options without these analyses, and the record of those that were asked for."""
    gone = tuple(
        Lowered(option=f"{DROPPED}{name}", default=1, value=0, because=because)
        for name in options.analyses
        if name in analyses
    )
    kept = tuple(name for name in options.analyses if name not in analyses)
    return msgspec.structs.replace(options, analyses=kept), gone


def as_planned(asked: Options, lowered: Collection[Lowered]) -> Options:
    """Options as they would be planned again: without the analyses that this plan left out for want of memory."""
    gone = {x.option.removeprefix(DROPPED) for x in lowered if x.option.startswith(DROPPED)}
    return msgspec.structs.replace(asked, analyses=tuple(name for name in asked.analyses if name not in gone))
