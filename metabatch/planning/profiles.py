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


def apply_profile(
    options: Options, explicit: Collection[str], memory_bytes: int
) -> tuple[Options, tuple[Lowered, ...]]:
    """Options with the profile's values where the user gave none, and what differs from the defaults.

    Parameters
    ----------
    explicit : collection of str
        Fields the user gave; they win over the profile.
    memory_bytes : int
        What ``auto`` chooses the tier by.
    """
    if options.profile == "default":
        return options, ()
    name: str = options.profile
    if name == "auto":
        name = next(n for n, (below, _) in TIERS.items() if memory_bytes < below * GIB)
    changes = {k: v for k, v in TIERS[name][1].items() if k not in explicit}
    defaults = Options()
    lowered = tuple(
        Lowered(option=k, default=getattr(defaults, k), value=v, because=f"--profile {options.profile} ({name})")
        for k, v in sorted(changes.items())
        if v != getattr(defaults, k)
    )
    return msgspec.structs.replace(options, **changes), lowered
