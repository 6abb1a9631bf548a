"""The rungs by which an instance is trained: each needs less memory than the one before.

The first three give the same models bit for bit. Only when none of them fits are the genes of the instance trained in
two, then three, then five equal parts (each at most 0.7 of the genes of the one before), and the mean of the parts then
speaks for the instance: that is a change of quality, and is said wherever the instance is reported.
"""

from __future__ import annotations

import math

import msgspec

from metabatch.resources.law import PIECE_ROWS, WHOLE_GROUP_ROWS, MemoryLaw
from metabatch.rundir.manifests import Plan, PlannedInstance

# The notes' rule: genes x 0.7 a try, three tries, not below 200 genes.
SHRINK, TRIES, FEWEST_GENES = 0.7, 3, 200


class Rung(msgspec.Struct, frozen=True):
    """How to train. `batch_rows`: most rows of a batch that is read; `parts`: the genes are trained in so many parts.

    linear : linear models; their own batch is the plan's, as it decides them.
    workers : processes that train together, each on a share of the rows; 0: this one alone.
    """

    name: str
    external: bool
    batch_rows: int
    parts: int = 1
    linear: bool = False
    workers: int = 0


def rungs(plan: Plan, planned: PlannedInstance) -> list[Rung]:
    """From the planned way of training down to the cheapest; of linear models there is one."""
    if plan.strategy == "distributed":
        workers = plan.options.workers
        inside = Rung("distributed", external=False, batch_rows=WHOLE_GROUP_ROWS, workers=workers)
        outside = Rung("distributed, external", external=True, batch_rows=PIECE_ROWS, workers=workers)
        return [inside, outside] if planned.batch_rows > PIECE_ROWS else [outside]
    if plan.strategy == "incremental":
        return [Rung("incremental", external=False, batch_rows=WHOLE_GROUP_ROWS, linear=True)]
    if plan.options.device == "cuda":  # not on the CPU unless told so
        return [Rung("in-memory", external=False, batch_rows=WHOLE_GROUP_ROWS)]
    found = [Rung("external, small batches", external=True, batch_rows=PIECE_ROWS)]
    if planned.batch_rows > PIECE_ROWS:
        found.insert(0, Rung("external", external=True, batch_rows=WHOLE_GROUP_ROWS))
    if plan.strategy != "external":
        found.insert(0, Rung("in-memory", external=False, batch_rows=WHOLE_GROUP_ROWS))
    genes = planned.genes
    for _ in range(TRIES):
        parts = math.ceil(planned.genes / max(1, math.floor(genes * SHRINK)))
        genes = planned.genes // parts
        if genes < FEWEST_GENES:
            break
        found.append(Rung(f"external, {parts} parts", external=True,
                          batch_rows=PIECE_ROWS, parts=parts))  # fmt: skip
    return found


def predicted_peak(law: MemoryLaw, rung: Rung, planned: PlannedInstance) -> int:
    """What the law says of a rung, bytes."""
    if rung.linear:
        return law.incremental(planned.rows, planned.batch_rows)
    if rung.workers:
        return law.distributed(planned.rows, rung.workers, rung.batch_rows, external=rung.external)
    if rung.external:
        return law.external(planned.rows, rung.batch_rows, rung.parts)
    return law.in_memory(planned.rows, planned.genes)
