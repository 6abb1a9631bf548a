"""What Slurm knows of jobs, and what it allows: thin calls of its own commands.

Where there is no Slurm (a laptop, a container) every question is answered with nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from metabatch.errors import InputError

# States of a job that may still do something; all others are final (squeue's manual, "JOB STATE CODES").
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING", "SPECIAL_EXIT"}
AT_WORK = {"RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT", "STOPPED", "SIGNALING"}
# Sites commonly keep Slurm's own default.
_MAX_ARRAY_SIZE = 1001
_SECONDS = 60


@dataclass(frozen=True)
class JobState:
    """State of a job or array task in Slurm's words; `reason` it waits for, node it runs on: empty when unknown."""

    state: str
    reason: str = ""
    node: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in WAITING | AT_WORK


def this_job() -> str | None:
    """The job this process belongs to, as Slurm's commands name it (``123_4`` for an array task), or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_there() -> bool:
    """Whether Slurm's commands can be called here."""
    return shutil.which("squeue") is not None and shutil.which("sbatch") is not None


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """States of jobs and array tasks (``123``, ``123_4``) that Slurm still knows of, by squeue and then sacct."""
    if not jobs or shutil.which("squeue") is None:
        return {}
    # Array numbers are asked for as a whole: a task that waits has no number of its own yet.
    wanted = sorted({job.partition("_")[0] for job in jobs}, key=int)
    found: dict[str, JobState] = {}
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%F|%K|%T|%r|%N",
        f"--jobs={','.join(wanted)}",
    ]
    for line in _lines(command):
        array, task, state, reason, node = line.split("|", 4)
        found[array if task == "N/A" else f"{array}_{task}"] = JobState(state, "" if reason == "None" else reason, node)
    if shutil.which("sacct") is not None and any(job not in found for job in jobs):
        fields = "--format=JobID,State,NodeList"
        for line in _lines(
            ["sacct", "--noheader", "--allocations", "--parsable2", fields, f"--jobs={','.join(wanted)}"]
        ):
            name, state, node = line.split("|", 2)
            if name not in found and re.fullmatch(r"\d+(_\d+)?", name):
                found[name] = JobState(state.split()[0], "", node)
    return {job: found[job] for job in jobs if job in found}


def max_array_size() -> int:
    """One more than the largest array index this site allows."""
    for line in _lines(["scontrol", "show", "config"]):
        match = re.match(r"MaxArraySize\s*=\s*(\d+)", line)
        if match:
            return int(match[1])
    return _MAX_ARRAY_SIZE


def sbatch(words: Sequence[str]) -> str:
    """Submit a batch script; returns the job's number.

    Raises
    ------
    InputError
        When Slurm refuses, in its own words.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *words], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"sbatch cannot be run: {error}", next_step="submit from a node that has Slurm") from None
    if done.returncode:
        raise InputError(
            f"sbatch refused: {(done.stderr or done.stdout).strip()}",
            where=f"sbatch {' '.join(words)}",
            next_step="jobs submitted before stay in the queue; correct the options and submit again",
        )
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def _lines(command: Sequence[str]) -> list[str]:
    """What a command says; nothing when it is not there or fails (an unknown job, no accounting)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
