"""The Slurm jobs of a run: which one works, waits or last worked on what, and what Slurm says of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from metabatch.resources.slurm import AT_WORK, JobState, NoAnswerError, job_states
from metabatch.rundir.attempts import read_attempts
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.lease import is_alive, read_owner
from metabatch.rundir.manifests import Plan
from metabatch.rundir.submissions import SubmittedJob, read_submissions

_ENDED = {
    "OUT_OF_MEMORY": "killed by Slurm for memory",
    "TIMEOUT": "ended by its time limit",
    "DEADLINE": "ended by its deadline",
    "NODE_FAIL": "lost with its node",
    "BOOT_FAIL": "lost with its node",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
}


@dataclass(frozen=True)
class Job:
    """A job by its number (``123``, ``123_4``); `state`: None when Slurm does not know it any more."""

    name: str
    state: JobState | None
    mem_mb: int | None = None

    @property
    def is_open(self) -> bool:
        return self.state is not None and self.state.is_open

    @property
    def is_at_work(self) -> bool:
        return self.state is not None and self.state.state in AT_WORK

    def ending(self) -> str | None:
        """How it ended badly, for people; None while it is open, when it ended well or is not known."""
        said = None if self.state is None else _ENDED.get(self.state.state)
        return None if said is None or self.state is None else f"{said} (job {self.name} {self.state.state})"

    def describe(self) -> str:
        """The job, what it does, and where or why it waits."""
        if self.state is None:
            return f"job {self.name}"
        more = f" on {self.state.node}" if self.state.node else f" ({self.state.reason})" if self.state.reason else ""
        return f"job {self.name} {self.state.state}{more}"


@dataclass(frozen=True)
class Jobs:
    """The job of each instance, by its number, and of each other stage (``consolidate``, ``evaluate``).

    unknown : what Slurm said when it could not be asked; None when it answered, or is not there.
    """

    instances: Mapping[int, Job]
    stages: Mapping[str, Job]
    unknown: str | None = None


def jobs_of(run: RunDir, plan: Plan) -> Jobs:
    """The jobs under this plan; one question to Slurm for all."""
    submitted = [job for job in read_submissions(run) if job.plan == plan.fingerprint]
    names = {p.index: _candidates(run.instance(p.index), plan, submitted) for p in plan.instances}
    stages = {job.stage: job.job_id for job in submitted if not job.instances}
    wanted = {name for found in names.values() for name in found if name} | set(stages.values())
    states, unknown = _ask(wanted)
    memory = _memory(submitted)
    jobs = {name: Job(name, states.get(name), memory.get(name)) for name in wanted}
    chosen = {index: _choose([jobs[name] if name else None for name in found]) for index, found in names.items()}
    instances = {index: job for index, job in chosen.items() if job is not None}
    return Jobs(instances, {stage: jobs[name] for stage, name in stages.items()}, unknown)


def open_jobs(run: RunDir) -> list[str]:
    """Jobs of this run that wait or are at work, under whatever plan; none where Slurm cannot be asked."""
    submitted = read_submissions(run)
    names = {job.task_of(index) for job in submitted for index in job.instances}
    states, _ = _ask(names | {job.job_id for job in submitted if not job.instances})
    return sorted(name for name, state in states.items() if state.is_open)


def _ask(names: Collection[str]) -> tuple[dict[str, JobState], str | None]:
    try:
        return job_states(names), None
    except NoAnswerError as error:
        return {}, str(error)


def _candidates(instance: InstanceDir, plan: Plan, submitted: Sequence[SubmittedJob]) -> list[str]:
    """Jobs that may be at this instance, the latest first: those submitted, and those that tried it.

    Empty for an attempt outside any job, and for a dead one in a job that is no array task and was not submitted for
    it: that was somebody's session (salloc, a notebook), which goes on without it.
    """
    times = [(job.submitted, job.task_of(instance.index)) for job in submitted if instance.index in job.instances]
    ours = {name for _, name in times}
    for attempt in read_attempts(instance):
        if attempt.plan == plan.fingerprint:
            name = attempt.slurm_job_id or ""
            times.append((attempt.started, name if "_" in name or name in ours else ""))
    owner = read_owner(instance)
    if owner is not None:
        name = owner.slurm_job_id or ""
        times.append((owner.started, name if "_" in name or name in ours or is_alive(instance, owner) else ""))
    return list(dict.fromkeys(name for _, name in sorted(times, reverse=True)))


def _choose(found: Sequence[Job | None]) -> Job | None:
    """The one that is still open, else the latest."""
    return next((job for job in found if job is not None and job.is_open), found[0] if found else None)


def _memory(submitted: Sequence[SubmittedJob]) -> Mapping[str, int]:
    found = {job.job_id: job.mem_mb for job in submitted}
    for job in submitted:
        found |= {job.task_of(index): job.mem_mb for index in job.instances}
    return found
