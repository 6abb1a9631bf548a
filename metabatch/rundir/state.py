"""What a run directory tells about its progress: done, running, failed and why, what to type next."""

from __future__ import annotations

from shlex import quote
from typing import Literal

import msgspec

from metabatch.errors import InputError
from metabatch.resources.progress import read_progress
from metabatch.rundir.attempts import Attempt, read_attempts
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.jobs import Job, Jobs, jobs_of
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lease import Owner, is_alive, read_owner
from metabatch.rundir.manifests import Plan, PlannedInstance
from metabatch.rundir.markers import check_stage, is_marked

_NOT_STARTED = "not started"
State = Literal["done", "running", "queued", "failed", "interrupted", "pending"]


class InstanceState(msgspec.Struct, frozen=True, kw_only=True):
    """One instance. Sizes in bytes, None where unknown; predicted and measured are those of the last `rung` taken."""

    index: int
    state: State
    detail: str
    attempts: int
    predicted_peak_bytes: int
    measured_peak_bytes: int | None = None
    memory_now_bytes: int | None = None
    rung: str | None = None


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `next_step` is what to type; `slurm`: what Slurm said when it could not be asked."""

    run: str
    strategy: str
    budget_bytes: int
    instances: list[InstanceState]
    ensemble: State
    evaluation: State
    next_step: str
    slurm: str | None = None


def survey(run: RunDir, jobs: Jobs | None = None) -> RunState:
    """Look at a run without changing anything in it. `jobs`: as `jobs_of` found them (default: ask Slurm now)."""
    plan = open_plan(run)
    if jobs is None:
        jobs = jobs_of(run, plan)
    instances = [_instance_state(run.instance(p.index), p, plan, jobs.instances.get(p.index)) for p in plan.instances]
    ensemble = _stage_state(run, plan, "ensemble", "consolidate", jobs)
    evaluation = _stage_state(run, plan, "evaluation", "evaluate", jobs)
    return RunState(
        run=str(run.root),
        strategy=plan.strategy,
        budget_bytes=plan.budget.bytes,
        instances=instances,
        ensemble=ensemble,
        evaluation=evaluation,
        next_step=_next_step(run, plan, instances, ensemble, evaluation),
        slurm=jobs.unknown,
    )


def sbatch_line(run: RunDir, plan: Plan, indices: list[int] | None = None) -> str:
    """The line that submits the instances (all, or `indices`) as a Slurm array."""
    chosen = [p for p in plan.instances if indices is None or p.index in indices]
    memory = max(p.mem_request_mb for p in chosen)
    array = f"0-{len(plan.instances) - 1}" if indices is None else ",".join(str(p.index) for p in chosen)
    return f"sbatch --array={array} --mem={memory}M jobs/train.sh {quote(str(run.root))}"


def _instance_state(instance: InstanceDir, planned: PlannedInstance, plan: Plan, job: Job | None) -> InstanceState:
    # Of this plan, and really made; what was decided against is on record too.
    attempts = [a for a in read_attempts(instance) if a.plan == plan.fingerprint]
    last = attempts[-1] if attempts else None
    owner = read_owner(instance)
    state, detail = _on_record(instance, plan, owner, last)
    if state not in ("done", "running") and job is not None:
        state, detail = _in_slurm(job, state, detail)
    at = owner if state == "running" and owner is not None else last
    progress = read_progress(instance.progress) if state == "running" else None
    return InstanceState(
        index=planned.index,
        state=state,
        detail=detail,
        attempts=sum(a.outcome != "not-tried" for a in attempts),
        predicted_peak_bytes=at.predicted_peak_bytes if at else planned.predicted_peak_bytes,
        measured_peak_bytes=last.measured_peak_bytes if last else None,
        rung=at.rung if at else None,
        memory_now_bytes=progress.rss_bytes if progress else None,
    )


def _on_record(instance: InstanceDir, plan: Plan, owner: Owner | None, last: Attempt | None) -> tuple[State, str]:
    """What the run directory says."""
    if is_marked(instance.root):
        try:
            done = check_stage(instance.root, stage="instance", fingerprint=plan.fingerprint)
        except InputError as error:
            return "failed", error.found
        return "done", f"finished {done.finished}, {len(done.ledger or ())} genes"
    if owner is not None:
        job = f", Slurm job {owner.slurm_job_id}" if owner.slurm_job_id else ""
        place = f"pid {owner.process.pid} on {owner.process.host}{job}, attempt {owner.attempt}, since {owner.started}"
        if not is_alive(instance, owner):
            return "failed", f"killed: nothing is heard of {place}"
        progress = read_progress(instance.progress)
        step = f"; {progress.stage} {progress.done}/{progress.total} {progress.unit}" if progress else ""
        return "running", place + step
    if last is None:
        return "pending", _NOT_STARTED
    message = (last.message or "no message").splitlines()[0]
    if last.outcome == "interrupted":
        return "interrupted", message
    return "failed", f"{last.outcome}: {message}"


def _in_slurm(job: Job, state: State, detail: str) -> tuple[State, str]:
    """What Slurm says beside it of the job that worked on it last."""
    if job.is_open:
        return "queued", job.describe()
    ending = job.ending()
    if ending is None:
        return state, detail
    if state == "pending":
        return "failed", ending
    return state, f"{ending}; {detail}"


def _stage_state(run: RunDir, plan: Plan, folder: str, stage: str, jobs: Jobs) -> State:
    job = jobs.stages.get(stage)
    if job is not None and job.is_open:
        return "running" if job.is_at_work else "queued"
    if not is_marked(run.root / folder):
        return "pending" if job is None or job.ending() is None else "failed"
    try:
        check_stage(run.root / folder, stage=stage, fingerprint=plan.fingerprint)
    except InputError:
        return "failed"
    return "done"


def _next_step(run: RunDir, plan: Plan, instances: list[InstanceState], ensemble: State, evaluation: State) -> str:
    place = quote(str(run.root))
    open_ones = [i.index for i in instances if i.state in ("pending", "failed", "interrupted")]
    if open_ones:
        lines = f"bin/train-instance {place} {open_ones[0]}"
        array = sbatch_line(run, plan, None if len(open_ones) == len(instances) else open_ones)
        return f"{lines}   (or on a cluster: bin/submit {place}, or {array})"
    if "queued" in (ensemble, evaluation) or "running" in (ensemble, evaluation):
        return "wait: what is left is in Slurm's queue"
    if any(i.state in ("running", "queued") for i in instances):
        return f"wait, then bin/consolidate {place}"
    if ensemble != "done":
        return f"bin/consolidate {place}"
    if evaluation != "done":
        return f"bin/evaluate {place}"
    return f"nothing: open {run.evaluation / 'report.html'}, or bin/predict {place} DATA OUT"
