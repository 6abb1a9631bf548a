"""Which of several runs to take: as good as the best, within a tolerance, and the cheapest in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metabatch.analysis.answer import band
from metabatch.metrics.bootstrap import interval

# Macro AP that memory may cost: an ensemble that is worse than the exact model by more is not recommended.
TOLERANCE_AP = 0.005


@dataclass(frozen=True)
class Candidate:
    """A run to choose from.

    macro_ap : None where a class does not occur. sampled : macro AP of each resample, the same ones for all.
    peak_bytes : highest anonymous memory of one instance. is_exact : one model of all training genes together.
    """

    name: str
    macro_ap: float | None
    sampled: np.ndarray
    peak_bytes: int
    is_exact: bool
    is_ensemble: bool


def difference(first: float | None, other: float | None, sampled: np.ndarray) -> dict[str, Any]:
    """AP of the other less that of the first, the interval of the paired resamples, and what they say."""
    if first is None or other is None:
        return {"ap": None, "ci95": None, "verdict": "undefined: the class is absent"}
    ci = interval(sampled)
    verdict = "not distinguishable"
    if ci is not None and (ci[0] > 0 or ci[1] < 0):
        verdict = "better" if ci[0] > 0 else "worse"
    return {"ap": other - first, "ci95": ci, "verdict": verdict}


def recommend(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The run with the lowest peak among those within `TOLERANCE_AP` of the best macro AP.

    Returns
    -------
    dict
        run (None: macro AP is undefined), text (one sentence), tolerance_ap, others: name -> difference of its macro
        AP to the recommended run's, within_tolerance (of the best), and for an ensemble behind an exact model by more
        than the tolerance behind_exact: run, ap, ci95, verdict.
    """
    found: dict[str, Any] = {"run": None, "tolerance_ap": TOLERANCE_AP, "others": {}}
    known = [(c, c.macro_ap) for c in candidates if c.macro_ap is not None]
    if len(known) < len(candidates):
        return found | {"text": "No run is recommended: a class does not occur in the rows compared."}
    best = max(ap for _, ap in known)
    near = [(c, ap) for c, ap in known if ap >= best - TOLERANCE_AP]
    chosen, ap = min(near, key=lambda c: (c[0].peak_bytes, -c[1]))
    exact = max((c for c in known if c[0].is_exact), key=lambda c: c[1], default=None)
    clauses = [f"Take {chosen.name}: mean AP of the classes {ap:.3f}, peak {_mib(chosen)} an instance"]
    for other, its in known:
        if other is chosen:
            continue
        told = difference(ap, its, other.sampled - chosen.sampled) | {"within_tolerance": its >= best - TOLERANCE_AP}
        clause = f"{other.name} {_apart(told)}, peak {_mib(other)}"
        if other.is_ensemble and exact is not None and its < exact[1] - TOLERANCE_AP:
            behind = difference(exact[1], its, other.sampled - exact[0].sampled)
            told["behind_exact"] = {"run": exact[0].name} | behind
            apart = "" if exact[0] is chosen else f" ({_apart(behind)})"
            clause += f", an ensemble more than {TOLERANCE_AP:g} behind the exact model {exact[0].name}{apart}"
        elif not told["within_tolerance"]:
            clause += f", more than {TOLERANCE_AP:g} behind the best"
        found["others"][other.name] = told
        clauses.append(clause)
    return found | {"run": chosen.name, "text": "; ".join(clauses) + "."}


def _apart(told: dict[str, Any]) -> str:
    """A difference in words."""
    if told["ap"] == 0:
        return "has the same AP"
    way = "better" if told["ap"] > 0 else "worse"
    doubt = ", not distinguishable" if told["verdict"] == "not distinguishable" else ""
    return f"is {abs(told['ap']):.2g} {way} (95 % interval of the difference {band(told['ci95'])}{doubt})"


def _mib(candidate: Candidate) -> str:
    return f"{candidate.peak_bytes / 2**20:,.0f} MiB"
