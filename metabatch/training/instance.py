"""One instance from plan to done.json: a supervised child does the work, and goes down the ladder when memory is short.

This process stays small (no data or tree library is imported here), so that it survives what kills the child.
"""

from __future__ import annotations

import logging
import os
import sys
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
from metabatch.resources.limits import Limit, cpu_count, memory_limits
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.resources.supervise import ChildEnd, supervise
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lease import Lease, hold, read_attempts
from metabatch.rundir.manifests import Plan, PlannedInstance
from metabatch.rundir.markers import check_stage, is_marked
from metabatch.rundir.publish import remove_dead_attempts
from metabatch.rundir.scratch import remove_dead_pages
from metabatch.training.job import Job, Report
from metabatch.training.ladder import Rung, predicted_peak, rungs

log = logging.getLogger(__name__)
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


def train_instance(run: RunDir, index: int, *, threads: int | None = None, force: bool = False) -> InstanceResult:
    """Train instance `index` of a planned run.

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
    instance = run.instance(index)
    if not force and _is_done(instance, plan):
        return InstanceResult(index, already=True)
    limit = memory_limits()[0]
    with hold(instance, plan.fingerprint) as lease, stop_on_signal() as stop:
        if not force and _is_done(instance, plan):  # somebody else finished it while we waited
            return InstanceResult(index, already=True)
        job = Job(
            run=str(run.root.resolve()), index=index, rung=None, threads=threads or plan.options.threads or cpu_count(),
            parent=os.getpid(), predicted_peak_bytes=0, limit_bytes=limit.bytes, limit_source=limit.source,
            log_level=logging.getLogger().getEffectiveLevel(),
        )  # fmt: skip
        log.info("memory: at most %.2f GB here (%s); %d threads", limit.bytes / 2**30, limit.source, job.threads)
        return _descend(plan, plan.instances[index], instance, lease, job, limit, stop, fresh=force)


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
    budget = min(plan.budget.bytes, limit.bytes)
    too_much = set() if fresh else _known_too_much(instance, plan, limit)
    cheapest = 0
    for rung in rungs(plan, planned):
        predicted = cheapest = predicted_peak(plan.memory_law, rung, planned)
        if rung.name in too_much:
            log.info("instance %d: %s took too much memory before, going on below it", planned.index, rung.name)
            continue
        attempt = lease.begin(rung.name, predicted, limit.bytes)
        if predicted > limit.bytes:
            message = f"predicted {_gb(predicted)}, {_gb(limit.bytes)} can be had ({limit.source})"
            log.warning("instance %d: %s does not fit: %s", planned.index, rung.name, message)
            lease.end("not-tried", None, message)
            continue
        log.info("instance %d, attempt %d: %s, predicted %s", planned.index, attempt, rung.name, _gb(predicted))
        done = _attempt(instance, lease, msgspec.structs.replace(job, rung=rung, predicted_peak_bytes=predicted),
                        rung, budget, stop)  # fmt: skip
        if done is not None:
            return InstanceResult(
                planned.index, already=False, seconds=done.seconds, peak_bytes=done.measured_peak_bytes,
                predicted_peak_bytes=predicted, rung=rung.name,
            )  # fmt: skip
    raise BudgetError(
        f"instance {planned.index} cannot be trained within {_gb(limit.bytes)} ({limit.source}); its cheapest way is "
        f"predicted to need {_gb(cheapest)}",
        expected="see attempts.jsonl for what was tried",
        where=str(instance.root),
        next_step=f"give the job --mem={planned.mem_request_mb}M, or plan again with a smaller "
        "--max-memory-per-instance-gb",
    )


def _known_too_much(instance: InstanceDir, plan: Plan, limit: Limit) -> set[str]:
    """Rungs that ran out of memory before under this plan, with no less than can be had now."""
    found = set()
    for attempt in read_attempts(instance):
        short = attempt.outcome in ("out-of-memory", "over-budget") or (
            attempt.outcome == "killed" and (attempt.measured_peak_bytes or 0) > 0.9 * attempt.limit_bytes
        )
        if short and attempt.plan == plan.fingerprint and attempt.limit_bytes >= limit.bytes:
            found.add(attempt.rung)
    return found


def _attempt(instance: InstanceDir, lease: Lease, job: Job, rung: Rung, budget: int, stop: StopFlag) -> Report | None:
    """One child; its report when it is done, None when it ran out of memory. Everything else is raised."""
    remove_dead_attempts(instance.root, owned=True)
    command = [sys.executable, "-m", "metabatch.training.child", msgspec.json.encode(job).decode()]
    end = supervise(command, budget, stop)
    instance.progress.unlink(missing_ok=True)
    remove_dead_attempts(instance.root, owned=True)
    remove_dead_pages()
    report = _report_of(end)
    peak = max(end.peak_bytes, report.measured_peak_bytes if report.outcome == "done" else 0)
    lease.end(report.outcome, peak, report.message)
    if report.outcome == "done":
        return report
    if report.outcome in ("out-of-memory", "over-budget"):
        log.warning("instance %d: %s: %s", job.index, rung.name, report.message)
        return None
    raise _error_of(report)


def _report_of(end: ChildEnd) -> Report:
    """What the child says of itself, or, when it had no time to, what its end says."""
    if end.over_budget:
        return Report(outcome="over-budget", exit_code=4, message=f"reached {_gb(end.peak_bytes)} and was stopped")
    if end.out_of_memory:
        return Report(
            outcome="out-of-memory", exit_code=4, message=f"killed by the kernel's OOM killer at {_gb(end.peak_bytes)}"
        )
    try:
        return msgspec.json.decode(end.output, type=Report)
    except msgspec.MsgspecError:
        if end.code < 0:
            message = f"the training process was killed by signal {-end.code}, not for memory"
            return Report(outcome="killed", exit_code=75, message=message, next_step="run the same command again")
        return Report(outcome="failed", exit_code=70, message=f"the training process ended with status {end.code}")


def _error_of(report: Report) -> Exception:
    if report.errno:
        return OSError(report.errno, os.strerror(report.errno), report.where)
    kind = _ERRORS.get(report.exit_code, MetabatchError)
    return kind(report.message or "", expected=report.expected, where=report.where, next_step=report.next_step)


def _gb(amount: int) -> str:
    return f"{amount / 2**30:.2f} GB"
