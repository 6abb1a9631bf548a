"""`--learn-from RUN`: the law corrected by the peaks an earlier run on the same data really had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.resources.law import MemoryLaw
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.fingerprint import dataset_fingerprint, open_plan
from metabatch.rundir.layout import require_run
from metabatch.rundir.manifests import Plan, Shard
from metabatch.rundir.markers import check_stage, is_marked

# Options on which the law depends; with others the peaks of a run say nothing of this one.
_SAME = ("classes", "max_depth", "max_bin", "n_folds", "exclude_features", "allow_features")


def learned_law(law: MemoryLaw, path: str, shards: Sequence[Shard], options: Options) -> MemoryLaw:
    """The law scaled so that no finished instance of the run at `path` would have been predicted too low.

    What is compared is what grows with the data: measured and predicted peak without the libraries.

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
    factors = [
        factor
        for planned in plan.instances
        if (factor := _factor(law, run.instance(planned.index).root, plan, planned.index)) is not None
    ]
    if not factors:
        raise InputError(f"--learn-from {path}: no instance of that run is done", next_step=f"bin/status {path}")
    return law.scaled(max(factors))


def _factor(law: MemoryLaw, folder: Path, plan: Plan, index: int) -> float | None:
    if not is_marked(folder):
        return None
    check_stage(folder, stage="instance", fingerprint=plan.fingerprint)
    usage = msgspec.json.decode((folder / "resource_usage.json").read_bytes(), type=ResourceUsage)
    if usage.parts > 1:
        return None
    planned = plan.instances[index]
    if usage.external:
        fixed, predicted = law.fixed_anonymous_bytes, law.external(planned.rows, usage.batch_rows)
    else:
        fixed, predicted = law.fixed_bytes, law.in_memory(planned.rows, planned.genes)
    return max(0.0, usage.measured_peak_bytes - fixed) / max(1, predicted - fixed)
