"""One instance from plan to done.json: a supervised child does the work, and goes down the ladder when memory is short.

This process stays small (no data or tree library is imported here), so that it survives what kills the child.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from metabatch.errors import (
    BudgetError,
    InputError,
    InterruptedRunError,
    MetabatchError,
    OwnedError,
    UsageError,
)
from metabatch.resources.law import BESIDE_BYTES
from metabatch.resources.limits import Limit, cpu_limits, memory_limits
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.resources.supervise import supervise
from metabatch.rundir.attempts import read_attempts
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lease import Lease, hold, tidy
from metabatch.rundir.lock import remove_leftovers
from metabatch.rundir.manifests import Plan, PlannedInstance
from metabatch.rundir.markers import check_stage, is_marked
from metabatch.rundir.scratch import remove_dead_folders
from metabatch.training.job import CHECKPOINT_SECONDS, Job, Report, report_of
from metabatch.training.ladder import Rung, predicted_peak, rungs

log = logging.getLogger(__name__)
_CLOSE, _DEATHS = 0.9, 3
_ERRORS: dict[int, type[MetabatchError]] = {
    e.exit_code: e for e in (UsageError, InputError, BudgetError, OwnedError, InterruptedRunError)
}


@dataclass(frozen=True)
class InstanceResult:
    """What came of it. `already`: it was done before and nothing was done now."""

    index: int
    already: bool
    seconds: float = 0.0
    peak_bytes: int = 0
    predicted_peak_bytes: int = 0
    rung: str = ""


def train_instance(
    run: RunDir, index: int, *, threads: int | None = None, force: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS, scheduler: str | None = None, listen: str | None = None,
) -> InstanceResult:  # fmt: skip
    """Train instance `index` of a planned run.

    Parameters
    ----------
    force : bool
        Also when it is done, and without what was kept of it.
    checkpoint_seconds : float
        How often the growing booster is kept (see `metabatch.training.checkpoints`).
    scheduler, listen : str, optional
        Of a distributed plan: the Dask scheduler to use (an address, or its scheduler file; default: workers are
        started here), and the address where the workers find each other (default: loopback, or this machine's address
        in the scheduler's network).

    Raises
    ------
    UsageError
        No such instance in the plan.
    InputError
        The data changed since the plan, or cannot be read.
    BudgetError
        No way of training it fits the memory this process may use.
    OwnedError
        Another live process trains it.
    InterruptedRunError
        A signal came, or the child was killed by somebody; the same command begins again.
    """
    plan = open_plan(run)
    if not 0 <= index < len(plan.instances):
        raise UsageError(
            f"there is no instance {index} in this plan",
            expected=f"0 to {len(plan.instances) - 1}",
            where=str(run.plan),
        )
    if plan.strategy != "distributed" and (scheduler or listen):
        raise UsageError(
            f"{'--dask-scheduler' if scheduler else '--listen'} decides nothing for --strategy {plan.strategy}",
            next_step="leave it out",
        )
    instance = run.instance(index)
    if not force and _is_done(instance, plan):
        tidy(instance.root, instance)
        return InstanceResult(index, already=True)
    # Of workers elsewhere each looks at its own machine's memory.
    limit = _effective(plan, memory_limits()[0] if scheduler is None else None)
    with hold(instance, plan.fingerprint) as lease, stop_on_signal() as stop:
        if not force and _is_done(instance, plan):  # somebody else finished it while we waited
            return InstanceResult(index, already=True)
        if force:
            shutil.rmtree(instance.checkpoints, ignore_errors=True)
        count, why = _threads(plan, threads)
        job = Job(
            run=str(run.root.resolve()), index=index, rung=None, threads=count,
            parent=os.getpid(), token=lease.token, checkpoint_seconds=checkpoint_seconds,
            predicted_peak_bytes=0, limit_bytes=limit.bytes, limit_source=limit.source,
            log_level=logging.getLogger().getEffectiveLevel(), scheduler=scheduler, listen=listen,
        )  # fmt: skip
        log.info(
            "memory: at most %s (%s); threads: %s", _gb(limit.bytes), limit.source, f"{count} ({why})" if count else why
        )
        return _descend(plan, plan.instances[index], instance, lease, job, limit, stop, fresh=force)


def _effective(plan: Plan, here: Limit | None) -> Limit:
    """The memory an attempt may use: what can be had here, and no more than the plan's budget."""
    if here is not None and here.bytes <= plan.budget.bytes:
        return here
    return Limit(plan.budget.bytes, f"the plan's budget: {plan.budget.source}")


def _threads(plan: Plan, asked: int | None) -> tuple[int, str]:
    """Threads and where the number comes from; the plan's own, made elsewhere, not beyond the CPUs here."""
    if asked:
        return asked, "--threads"
    if plan.strategy == "distributed" and not plan.options.threads:
        return 0, "for each worker as many as it may use CPUs"
    here = cpu_limits()[0]
    if plan.options.threads and plan.options.threads <= here.count:
        return plan.options.threads, "the plan's --threads"
    return max(1, here.count), here.source


def _is_done(instance: InstanceDir, plan: Plan) -> bool:
    if not is_marked(instance.root):
        return False
    try:
        check_stage(instance.root, stage="instance", fingerprint=plan.fingerprint)
    except InputError as error:
        log.warning("instance %d is trained again: %s", instance.index, error.found)
        return False
    return True


def _descend(
    plan: Plan, planned: PlannedInstance, instance: InstanceDir, lease: Lease, job: Job, limit: Limit, stop: StopFlag,
    *, fresh: bool,
) -> InstanceResult:  # fmt: skip
    """Try one rung after the other until one of them trains the instance."""
    ladder = rungs(plan, planned)
    too_much = set() if fresh else _known_too_much(instance, plan, limit, ladder)
    needed = 0
    for rung in ladder:
        predicted = predicted_peak(plan.memory_law, rung, planned)
        if rung.name in too_much:
            before = "took too much memory before, with no less than can be had now"
            log.info("instance %d: %s %s", planned.index, rung.name, before)
            lease.skip(rung.name, predicted, limit.bytes, before)
            needed = max(predicted, limit.bytes)
            continue
        message = _not_to_be_had(rung, predicted, limit, job)
        if message is not None:
            needed = predicted
            log.warning("instance %d: %s does not fit: %s", planned.index, rung.name, message)
            lease.skip(rung.name, predicted, limit.bytes, message)
            continue
        attempt = lease.begin(rung.name, predicted, limit.bytes)
        log.info("instance %d, attempt %d: %s, predicted %s", planned.index, attempt, rung.name, _gb(predicted))
        done = _attempt(instance, lease, msgspec.structs.replace(job, rung=rung, predicted_peak_bytes=predicted),
                        rung, limit.bytes, stop)  # fmt: skip
        if done is not None:
            return InstanceResult(
                planned.index, already=False, seconds=done.seconds, peak_bytes=done.measured_peak_bytes,
                predicted_peak_bytes=predicted, rung=rung.name,
            )  # fmt: skip
        needed = max(predicted, limit.bytes)
    more = max(planned.mem_request_mb << 20, math.ceil(1.5 * needed))
    job_may_help = limit.bytes < plan.budget.bytes
    raise BudgetError(
        f"instance {planned.index} cannot be trained within {_gb(limit.bytes)} ({limit.source}); its cheapest way "
        f"needs more than {_gb(needed)}",
        expected="see attempts.jsonl for what was tried",
        where=str(instance.root),
        next_step=(f"give the job --mem={math.ceil(more / 2**20)}M, or " if job_may_help else "")
        + f"plan again with --max-memory-per-instance-gb {math.ceil(more / 2**30)} or more",
    )


def _not_to_be_had(rung: Rung, predicted: int, limit: Limit, job: Job) -> str | None:
    """Why there is too little memory for a rung, or None; of workers made here, for all of them."""
    if predicted > limit.bytes:
        return f"predicted {_gb(predicted)}, {_gb(limit.bytes)} can be had ({limit.source})"
    if rung.workers and job.scheduler is None:
        here, needed = memory_limits()[0], rung.workers * (predicted + BESIDE_BYTES)
        if needed > here.bytes:
            return (
                f"{rung.workers} workers need {_gb(needed)} on this machine, {_gb(here.bytes)} can be had "
                f"({here.source}); other machines: jobs/train-distributed.sh, or --dask-scheduler"
            )
    return None


def _known_too_much(instance: InstanceDir, plan: Plan, limit: Limit, ladder: Sequence[Rung]) -> set[str]:
    """Rungs that ran out of memory before under this plan, with no less than can be had now.

    A supervisor that was killed itself left no word why. It was for memory when the last report was close to the
    limit, or when it happened `_DEATHS` times without a checkpoint in between; but not even then are genes trained in
    parts for it.
    """
    found, deaths = set(), Counter[str]()
    kept = _last_checkpoint(instance)
    for attempt in read_attempts(instance):
        if attempt.plan != plan.fingerprint or attempt.limit_bytes < limit.bytes:
            continue
        if attempt.outcome in ("out-of-memory", "over-budget"):
            found.add(attempt.rung)
        if attempt.outcome == "killed":
            close = (attempt.measured_peak_bytes or 0) > _CLOSE * attempt.limit_bytes
            got_on = kept is not None and attempt.started <= kept
            deaths[attempt.rung] += _DEATHS if close else not got_on
    whole = [rung.name for rung in ladder if rung.parts == 1]
    return found | {rung for rung, count in deaths.items() if count >= _DEATHS and rung in whole[:-1]}


def _last_checkpoint(instance: InstanceDir) -> str | None:
    """When a booster was kept last, as in attempts.jsonl; None when none is."""
    times = [p.stat().st_mtime for p in instance.checkpoints.glob("*.ckpt")]
    return dt.datetime.fromtimestamp(max(times), dt.UTC).isoformat(timespec="seconds") if times else None


def _attempt(instance: InstanceDir, lease: Lease, job: Job, rung: Rung, budget: int, stop: StopFlag) -> Report | None:
    """One child; its report when it is done, None when it ran out of memory. Everything else is raised."""
    command = [sys.executable, "-m", "metabatch.training.child", msgspec.json.encode(job).decode()]
    try:
        end = supervise(command, budget, stop, lease.is_lost)
    except BaseException as error:  # put on record, and goes on
        lease.end("failed", None, f"{type(error).__name__}: {error}")
        raise
    remove_dead_folders()
    if not lease.is_ours():
        message = "taken over by another process, because this one was not heard of"
        lease.end("abandoned", end.peak_bytes, message)
        tidy(instance.root, instance)  # what the child wrote before it was killed, if the other one is through
        raise OwnedError(f"instance {job.index}: {message}", next_step="look with bin/status who trains it")
    instance.progress.unlink(missing_ok=True)
    remove_leftovers(instance.root)
    if end.abandoned:
        message = "the heartbeat could not be written, so that somebody else might have begun; nobody has"
        lease.end("interrupted", end.peak_bytes, message)
        raise InterruptedRunError(f"instance {job.index}: {message}", next_step="run the same command again")
    report = report_of(end)
    peak = max(end.peak_bytes, report.measured_peak_bytes if report.outcome == "done" else 0)
    lease.end(report.outcome, peak, report.message)
    if report.outcome == "done":
        return report
    if report.outcome in ("out-of-memory", "over-budget"):
        log.warning("instance %d: %s: %s", job.index, rung.name, report.message)
        return None
    raise _error_of(report)


def _error_of(report: Report) -> Exception:
    if report.errno:
        return OSError(report.errno, os.strerror(report.errno), report.where)
    kind = _ERRORS.get(report.exit_code, MetabatchError)
    return kind(report.message or "", expected=report.expected, where=report.where, next_step=report.next_step)


def _gb(amount: int) -> str:
    return f"{amount / 2**30:.2f} GB"
