"""The Slurm jobs of a run: which one last worked on what, and what Slurm says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metabatch.resources.slurm import AT_WORK, JobState, job_states
from metabatch.rundir.attempts import Attempt, read_attempts
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import Owner, read_owner
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
    """The last job of each instance, by its number, and of each other stage (``consolidate``, ``evaluate``)."""

    instances: Mapping[int, Job]
    stages: Mapping[str, Job]


def jobs_of(run: RunDir, plan: Plan) -> Jobs:
    """The jobs under this plan; one question to Slurm for all."""
    submitted = [job for job in read_submissions(run) if job.plan == plan.fingerprint]
    names: dict[int, str] = {}
    for planned in plan.instances:
        instance = run.instance(planned.index)
        name = _last_job(planned.index, read_attempts(instance), read_owner(instance), submitted)
        if name is not None:
            names[planned.index] = name
    stages = {job.stage: job.job_id for job in submitted if not job.instances}
    states = job_states({*names.values(), *stages.values()})
    memory = _memory(submitted)
    return Jobs(
        {index: Job(name, states.get(name), memory.get(name)) for index, name in names.items()},
        {stage: Job(name, states.get(name), memory.get(name)) for stage, name in stages.items()},
    )


def _last_job(
    index: int, attempts: Sequence[Attempt], owner: Owner | None, submitted: Sequence[SubmittedJob]
) -> str | None:
    if owner is not None:
        return owner.slurm_job_id
    latest = max((job for job in submitted if index in job.instances), key=lambda job: job.submitted, default=None)
    last = attempts[-1] if attempts else None
    if latest is not None and (last is None or last.started <= latest.submitted):
        return latest.task_of(index)
    return last.slurm_job_id if last is not None else None


def _memory(submitted: Sequence[SubmittedJob]) -> Mapping[str, int]:
    found = {job.job_id: job.mem_mb for job in submitted}
    for job in submitted:
        found |= {job.task_of(index): job.mem_mb for index in job.instances}
    return found
