"""submissions.jsonl: which Slurm jobs were submitted for a run, one line a job, never rewritten."""

from __future__ import annotations

import msgspec

from metabatch.rundir.layout import RunDir
from metabatch.rundir.records import add_record, read_records


class SubmittedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job. `instances`: of a training array, in the order of its tasks; task i trains instance `first` + i."""

    submitted: str
    job_id: str
    stage: str
    plan: str
    mem_mb: int
    instances: tuple[int, ...] = ()
    first: int = 0
    command: str

    def task_of(self, instance: int) -> str:
        """The array task that trains `instance`, as Slurm's commands name it."""
        return f"{self.job_id}_{instance - self.first}"


def read_submissions(run: RunDir) -> list[SubmittedJob]:
    """All jobs on record, oldest first."""
    return read_records(run.submissions, SubmittedJob)


def record_submission(run: RunDir, job: SubmittedJob) -> None:
    add_record(run.submissions, job)
