"""What a run directory tells about its progress: done, running, failed and why, what to type next."""

from __future__ import annotations

import math
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
from metabatch.rundir.made_from import instance_markers, markers_of
from metabatch.rundir.manifests import Done, Plan, PlannedInstance
from metabatch.rundir.markers import MARKER, check_stage, is_marked
from metabatch.rundir.publish import sha256_file

_NOT_STARTED = "not started"
# As in jobs/train-distributed.sh.
WORKER_CPUS = 2
# stale: finished, but what it was made from is another now.
State = Literal["done", "running", "queued", "failed", "interrupted", "pending", "stale"]


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
    """A whole run.

    ensemble, evaluation : their states; `…_detail`: what is wrong with them, or lacks; empty: nothing to say.
    lacks : planned instances that the ensemble in the run was made without (`consolidate --allow-missing`).
    next_step : what to type. slurm : what Slurm said when it could not be asked.
    """

    run: str
    strategy: str
    budget_bytes: int
    instances: list[InstanceState]
    ensemble: State
    ensemble_detail: str
    lacks: list[int]
    evaluation: State
    evaluation_detail: str
    next_step: str
    slurm: str | None = None


def survey(run: RunDir, jobs: Jobs | None = None) -> RunState:
    """Look at a run without changing anything in it. `jobs`: as `jobs_of` found them (default: ask Slurm now)."""
    plan = open_plan(run)
    if jobs is None:
        jobs = jobs_of(run, plan)
    instances = [_instance_state(run.instance(p.index), p, plan, jobs.instances.get(p.index)) for p in plan.instances]
    made = _finished(run, plan, "ensemble", "consolidate")
    lacks = [] if made is None else [i.index for i in instances if i.index not in markers_of(made.inputs)]
    outdated = "" if made is None else _ensemble_outdated(run, made, instances)
    evaluated = _finished(run, plan, "evaluation", "evaluate")
    ensemble = _stage_state(run, "ensemble", made, outdated, jobs.stages.get("consolidate"))
    since = "" if evaluated is None else _evaluation_outdated(run, evaluated, ensemble)
    evaluation = _stage_state(run, "evaluation", evaluated, since, jobs.stages.get("evaluate"))
    said = [f"made without instance {_listed(lacks)}"] if lacks else []
    return RunState(
        run=str(run.root),
        strategy=plan.strategy,
        budget_bytes=plan.budget.bytes,
        instances=instances,
        ensemble=ensemble,
        ensemble_detail="; ".join([*said, outdated] if outdated else said),
        lacks=lacks,
        evaluation=evaluation,
        evaluation_detail=since,
        next_step=_next_step(run, plan, instances, ensemble, evaluation, lacks),
        slurm=jobs.unknown,
    )


def sbatch_line(run: RunDir, plan: Plan, indices: list[int] | None = None) -> str:
    """The line that submits the instances (all, or `indices`) as a Slurm array."""
    chosen = [p for p in plan.instances if indices is None or p.index in indices]
    memory = max(p.mem_request_mb for p in chosen)
    array = f"0-{len(plan.instances) - 1}" if indices is None else ",".join(str(p.index) for p in chosen)
    words = " ".join(training_memory(plan, memory))
    return f"sbatch --array={array} {words} jobs/{training_script(plan)} {quote(str(run.root))}"


def training_script(plan: Plan) -> str:
    """Which of the sbatch scripts trains an instance."""
    return "train-distributed.sh" if plan.strategy == "distributed" else "train.sh"


def training_memory(plan: Plan, mem_mb: int) -> list[str]:
    """The words by which sbatch gives every task, or every worker, so many MiB."""
    if plan.strategy != "distributed":
        return [f"--mem={mem_mb}M", *(["--gres=gpu:1"] if plan.options.device == "cuda" else [])]
    return [f"--ntasks={plan.options.workers}", f"--mem-per-cpu={math.ceil(mem_mb / WORKER_CPUS)}M"]


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


def _finished(run: RunDir, plan: Plan, folder: str, stage: str) -> Done | None:
    """The marker of a stage whose files agree with it; None without."""
    if not is_marked(run.root / folder):
        return None
    try:
        return check_stage(run.root / folder, stage=stage, fingerprint=plan.fingerprint)
    except InputError:
        return None


def _ensemble_outdated(run: RunDir, made: Done, instances: list[InstanceState]) -> str:
    """Why the ensemble is to be made again; empty when the instances that are done are those it was made from."""
    before = markers_of(made.inputs)
    now = markers_of(instance_markers(run, [i.index for i in instances if i.state == "done"]))
    since = [i for i in now if i not in before]
    anew = [i for i in now if i in before and now[i] != before[i]]
    reasons = [f"instance {_listed(since)} is done since"] if since else []
    reasons += [f"instance {_listed(anew)} was trained anew since"] if anew else []
    return ", ".join(reasons)


def _evaluation_outdated(run: RunDir, evaluated: Done, ensemble: State) -> str:
    """Why the evaluation is to be made again; empty when it is of the ensemble in the run, which stays."""
    marker = run.ensemble / MARKER
    if not marker.is_file() or evaluated.inputs.get("ensemble") != sha256_file(marker):
        return "of another ensemble than the one in the run"
    return "of an ensemble that is to be made again" if ensemble == "stale" else ""


def _stage_state(run: RunDir, folder: str, done: Done | None, outdated: str, job: Job | None) -> State:
    if job is not None and job.is_open:
        return "running" if job.is_at_work else "queued"
    if done is not None:
        return "stale" if outdated else "done"
    if is_marked(run.root / folder):
        return "failed"
    return "pending" if job is None or job.ending() is None else "failed"


def _next_step(
    run: RunDir, plan: Plan, instances: list[InstanceState], ensemble: State, evaluation: State, lacks: list[int]
) -> str:
    place = quote(str(run.root))
    open_ones = [i.index for i in instances if i.state in ("pending", "failed", "interrupted")]
    to_be_whole = ""
    if open_ones:
        array = sbatch_line(run, plan, None if len(open_ones) == len(instances) else open_ones)
        training = f"bin/train-instance {place} {open_ones[0]}   (or on a cluster: bin/submit {place}, or {array})"
        if ensemble != "done" or not set(open_ones) <= set(lacks):
            return training
        # An ensemble of the others was asked for, and is there.
        to_be_whole = f"; for an ensemble with instance {_listed(open_ones)} too: {training}"
    if "queued" in (ensemble, evaluation) or "running" in (ensemble, evaluation):
        return "wait: what is left is in Slurm's queue"
    if any(i.state in ("running", "queued") for i in instances):
        return f"wait, then bin/consolidate {place}"
    if ensemble != "done":
        return f"bin/consolidate {place}"
    if evaluation != "done":
        return f"bin/evaluate {place}{to_be_whole}"
    return f"nothing: open {run.evaluation / 'report.html'}, or bin/predict {place} DATA OUT{to_be_whole}"


def _listed(indices: list[int]) -> str:
    return ", ".join(str(i) for i in indices)
