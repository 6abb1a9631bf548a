"""attempts.jsonl: every attempt at an instance, one line each, never rewritten."""

from __future__ import annotations

import msgspec

from metabatch.rundir.layout import InstanceDir
from metabatch.rundir.records import add_record, read_records


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attempts.jsonl.

    outcome : done, failed, interrupted, killed; or why the next rung was taken: out-of-memory (the kernel or the
        allocator refused), over-budget (stopped by us), not-tried (predicted not to fit, or too
        much before).
    plan : fingerprint of the plan it was made under.
    limit_bytes : memory this attempt could have, the plan's budget at most. measured_peak_bytes : anonymous memory.
    """

    attempt: int
    started: str
    ended: str
    outcome: str
    plan: str
    rung: str
    host: str
    slurm_job_id: str | None
    predicted_peak_bytes: int
    limit_bytes: int
    measured_peak_bytes: int | None
    message: str | None = None


def read_attempts(instance: InstanceDir) -> list[Attempt]:
    """All attempts on record, oldest first."""
    return read_records(instance.attempts, Attempt)


def record_attempt(instance: InstanceDir, attempt: Attempt) -> None:
    add_record(instance.attempts, attempt)
