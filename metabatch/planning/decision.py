"""Strategy and analyses together: what does not fit the budget is first tried with fewer analyses, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

import polars as pl

from metabatch.errors import BudgetError
from metabatch.options import Options
from metabatch.planning.duration import speed_of
from metabatch.planning.linear import INCREMENTAL, with_batch
from metabatch.planning.profiles import without
from metabatch.planning.strategies import GIB, Choice, choose
from metabatch.resources.law import MemoryLaw
from metabatch.resources.limits import cpu_count
from metabatch.rundir.manifests import Alternative, Budget, Columns, Lowered, ProbeResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """`options`: as asked, less the analyses in `lowered`."""

    options: Options
    law: MemoryLaw
    choice: Choice
    why: str
    alternatives: tuple[Alternative, ...]
    lowered: tuple[Lowered, ...]


def decide(
    training: pl.DataFrame, columns: Columns, options: Options, explicit: Collection[str], budget: Budget,
    probe: ProbeResult | None, law_of: Callable[[Options], MemoryLaw], *, one_model: bool = False,
) -> Decision:  # fmt: skip
    """Choose the strategy; without SHAP, then importance, then all analyses, where nothing else fits the budget.

    Parameters
    ----------
    explicit : collection of str
        Options that the user gave: analyses asked for by name are not left out.
    law_of : callable
        The memory law under some options.
    one_model : bool
        Not several instances.

    Raises
    ------
    BudgetError
        Nothing fits; the refusal is the one with everything that was asked for.
    """
    steps: list[tuple[str, ...]] = [()]
    if "analyses" not in explicit:
        later = tuple(name for name in options.analyses if name != "leakage")  # the screen was before this
        steps += [("shap",), ("shap", "importance"), later]
    refusal: BudgetError | None = None
    for step in steps:
        because = f"with it no strategy fits the budget of {budget.bytes / GIB:.2f} GB"
        leaner, lowered = without(options, step, because)
        law = law_of(leaner)
        try:
            choice, why, alternatives = choose(
                training, columns, leaner, law, budget, speed_of(law, probe, options.threads or cpu_count()),
                one_model=one_model,
            )  # fmt: skip
        except BudgetError as error:
            refusal = refusal or error
            continue
        for gone in lowered:
            log.warning("%s is left out: %s", gone.option, because)
        if choice.strategy == INCREMENTAL:
            leaner, smaller = with_batch(leaner, choice.batch_rows, budget.bytes)
            lowered = (*lowered, *smaller)
        return Decision(leaner, law, choice, why, alternatives, lowered)
    raise refusal or RuntimeError("nothing was tried")
