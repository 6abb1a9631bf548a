"""Memory tiers (the notes' figures): what a profile lowers or raises, and the record of it."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from metabatch.options import Options
from metabatch.rundir.manifests import Lowered

GIB = 1 << 30
# profile -> (memory below which `auto` takes it, settings)
TIERS: dict[str, tuple[float, dict[str, int]]] = {
    "low": (8, {"genes_per_instance": 500, "n_estimators": 400}),
    "standard": (32, {"genes_per_instance": 1200, "n_estimators": 800}),
    "high": (float("inf"), {"genes_per_instance": 2000, "n_estimators": 1200}),
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
    defaults = Options()
    lowered = tuple(
        Lowered(option=k, default=getattr(defaults, k), value=v, because=f"--profile {options.profile} ({name})")
        for k, v in sorted(changes.items())
        if v != getattr(defaults, k)
    )
    return msgspec.structs.replace(options, **changes), lowered
