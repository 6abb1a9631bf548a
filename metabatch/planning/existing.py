"""A run directory that holds something already: the same plan, another one, or a stranger's files."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from metabatch.errors import InputError, OwnedError
from metabatch.options import Options
from metabatch.planning.linear import batch_as_planned
from metabatch.planning.profiles import apply_profile, as_planned, tier_of
from metabatch.rundir.fingerprint import dataset_fingerprint, open_plan
from metabatch.rundir.jobs import open_jobs
from metabatch.rundir.layout import InstanceDir, RunDir, foreign_entries
from metabatch.rundir.lease import is_alive, read_owner
from metabatch.rundir.manifests import Plan, Shard, Teacher
from metabatch.rundir.markers import MARKER


def existing_plan(
    run: RunDir, options: Options, explicit: Collection[str], shards: Sequence[Shard], *, force: bool,
    teacher: Teacher | None = None,
) -> Plan | None:  # fmt: skip
    """The plan already there when it is the same; an InputError when it is another.

    Threads, the memory of this machine and a run to learn from do not make it another plan.
    """
    if run.root.exists() and not run.root.is_dir():
        raise InputError(f"{run.root} is a file", expected="a new or empty run directory")
    strangers = foreign_entries(run.root)
    if strangers and not run.plan.exists():
        raise InputError(
            f"{run.root} holds other files ({', '.join(strangers[:5])})", expected="a new or empty run directory"
        )
    if not run.plan.exists():
        return None
    if force:
        _refuse_while_training(run)
        return None
    plan = open_plan(run)
    if dataset_fingerprint(plan.dataset.shards) != dataset_fingerprint(shards):
        raise InputError(
            f"{run.root} holds a plan for other data (the content of the shards differs)",
            where=plan.dataset.path,
            next_step="choose a new run directory, or --force to replace the plan and discard what it trained",
        )
    if _identity(plan.teacher) != _identity(teacher):
        raise InputError(
            f"{run.root} holds the plan of {_named(plan.teacher)}, not of {_named(teacher)}",
            expected="the same command again (a plan never changes)",
            next_step="choose a new run directory, or --force to replace the plan and discard what it trained",
        )
    tier = plan.profile if options.profile == plan.options.profile else tier_of(options, 0)
    asked = batch_as_planned(as_planned(apply_profile(options, explicit, tier)[0], plan.lowered), plan.lowered)
    old, new = (
        msgspec.structs.asdict(msgspec.structs.replace(o, threads=None, learn_from=None)) for o in (plan.options, asked)
    )
    if old != new:
        changed = [f"{k} {old[k]} -> {new[k]}" for k in old if old[k] != new[k]]
        raise InputError(
            f"{run.root} holds a plan with other options: {'; '.join(changed)}",
            expected="the same options (a plan never changes)",
            next_step="choose a new run directory, or --force to replace the plan and discard what it trained",
        )
    return plan


def _identity(teacher: Teacher | None) -> tuple[str, str, float, float] | None:
    if teacher is None:
        return None
    return teacher.fingerprint, teacher.bundle, teacher.label_share, teacher.gain_share


def _named(teacher: Teacher | None) -> str:
    if teacher is None:
        return "a model without teacher"
    share = f"--label-share {teacher.label_share:g}, --gain-share {teacher.gain_share:g}"
    return f"a student of plan {teacher.fingerprint[:12]} (bundle {teacher.bundle[:12]}, {share})"


def _refuse_while_training(run: RunDir) -> None:
    queued = open_jobs(run)
    if queued:
        raise OwnedError(
            f"jobs of this run are in Slurm's queue: {', '.join(queued[:5])}{', …' if len(queued) > 5 else ''}",
            expected="nobody at work in a run whose plan is replaced",
            where=str(run.root),
            next_step=f"scancel {' '.join(sorted({name.partition('_')[0] for name in queued}))}, "
            "or choose a new run directory",
        )
    for folder in sorted(p for p in run.instances.glob("*") if p.name.isdigit()):
        instance = InstanceDir(folder, int(folder.name))
        owner = read_owner(instance)
        if owner is not None and is_alive(instance, owner):
            raise OwnedError(
                f"instance {instance.index} is being trained by pid {owner.process.pid} on {owner.process.host}",
                expected="nobody at work in a run whose plan is replaced",
                where=str(run.root),
                next_step="stop it first, or choose a new run directory",
            )


def discard_plan(run: RunDir) -> None:
    """Invalidate everything made under the plan being replaced: markers first, so that nothing half-old counts."""
    run.plan.unlink(missing_ok=True)
    for stage in (run.ensemble, run.evaluation, run.against, *run.instances.glob("*")):
        (stage / MARKER).unlink(missing_ok=True)
