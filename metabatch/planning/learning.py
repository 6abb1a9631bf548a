"""`--learn-from RUN`: the law corrected by the peaks an earlier run on the same data really had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.planning.linear import INCREMENTAL
from metabatch.planning.workers import DISTRIBUTED
from metabatch.resources.law import MemoryLaw
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.fingerprint import dataset_fingerprint, open_plan
from metabatch.rundir.layout import require_run
from metabatch.rundir.manifests import Plan, PlannedInstance, Shard
from metabatch.rundir.markers import check_stage, is_marked

# Options on which the law depends; with others the peaks of a run say nothing of this one.
_SAME = ("classes", "max_depth", "max_bin", "n_folds", "exclude_features", "allow_features")
# Where less than this grew, the libraries' own variation tells more than the data. A law is lowered by a fifth at most.
_TELLING_BYTES, _LEAST_FACTOR = 64 << 20, 0.8
# The stored part of the cells of two runs of the same features may differ by this (samples, holdouts).
_SAME_DENSITY = 0.02


def learned_law(law: MemoryLaw, path: str, shards: Sequence[Shard], options: Options) -> MemoryLaw:
    """The law corrected so that no finished instance of the run at `path` would have been predicted too low.

    Instances in memory whose matrix outweighs the libraries scale what grows with the data: measured over predicted
    peak without the libraries. Others (small ones, external memory, linear models) only raise what is fixed.

    Raises
    ------
    InputError
        No run, of other data or other options, or no instance of it is done.
    """
    run = require_run(path)
    plan = open_plan(run)
    if dataset_fingerprint(plan.dataset.shards) != dataset_fingerprint(shards):
        raise InputError(f"--learn-from {path}: that run is of other data", where=plan.dataset.path)
    other = [n for n in _SAME if getattr(plan.options, n) != getattr(options, n)]
    if other or plan.memory_law.features != law.features:
        raise InputError(
            f"--learn-from {path}: that run was planned with other {', '.join(other) or 'features'}",
            expected="the same classes, features, bins, depth and folds",
        )
    if abs(plan.memory_law.stored_fraction - law.stored_fraction) > _SAME_DENSITY:
        raise InputError(
            f"--learn-from {path}: that run stores {plan.memory_law.stored_fraction:.0%} of the cells, this one "
            f"{law.stored_fraction:.0%}",
            expected="the same missing-value policy",
            next_step="give both the same --missing-policy and budget",
        )
    if plan.strategy == DISTRIBUTED:
        raise InputError(
            f"--learn-from {path}: a distributed run tells what a worker needs, not an instance",
            expected="a run of another strategy",
        )
    peaks = [_peak(run.instance(p.index).root, plan) for p in plan.instances]
    done = [(planned, usage) for planned, usage in zip(plan.instances, peaks, strict=True) if usage is not None]
    if not done:
        raise InputError(
            f"--learn-from {path}: no instance of that run is done (in one part and one go)",
            next_step=f"bin/status {path}",
        )
    linear = plan.strategy == INCREMENTAL
    factors = [f for planned, usage in done if not linear and (f := _factor(law, planned, usage)) is not None]
    scaled = law.scaled(max(_LEAST_FACTOR, *factors)) if factors else law
    short = max((u.measured_peak_bytes - _predicted(scaled, p, u, linear=linear) for p, u in done), default=0)
    if short <= 0:
        return scaled
    return msgspec.structs.replace(
        scaled, fixed_bytes=scaled.fixed_bytes + short, fixed_anonymous_bytes=scaled.fixed_anonymous_bytes + short
    )


def _peak(folder: Path, plan: Plan) -> ResourceUsage | None:
    """What a finished instance measured; None for others, and for one trained in parts or from checkpoints."""
    if not is_marked(folder):
        return None
    check_stage(folder, stage="instance", fingerprint=plan.fingerprint)
    usage = msgspec.json.decode((folder / "resource_usage.json").read_bytes(), type=ResourceUsage)
    return usage if usage.parts == 1 and not usage.restored_rounds else None


def _predicted(law: MemoryLaw, planned: PlannedInstance, usage: ResourceUsage, *, linear: bool) -> int:
    if linear:
        return law.incremental(planned.rows, planned.batch_rows)
    if usage.external:
        return law.external(planned.rows, usage.batch_rows)
    return law.in_memory(planned.rows, planned.genes)


def _factor(law: MemoryLaw, planned: PlannedInstance, usage: ResourceUsage) -> float | None:
    """Measured over predicted growth, where there is enough of it to tell."""
    trained = msgspec.structs.replace(law, analysis_bytes=0, analysis_file_bytes=0)
    growth = trained.in_memory(planned.rows, planned.genes) - law.fixed_bytes
    if law.in_memory(planned.rows, planned.genes) > trained.in_memory(planned.rows, planned.genes):
        return None  # the peak was that of the analyses
    if usage.external or growth < _TELLING_BYTES:
        return None
    return (usage.measured_peak_bytes - law.fixed_bytes) / growth
