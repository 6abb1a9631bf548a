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


class NoAnswerError(Exception):
    """Slurm is there and could not be asked; what it said stands in the text."""


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """States of jobs and array tasks (``123``, ``123_4``) that Slurm still knows of, by squeue and then sacct.

    Raises
    ------
    NoAnswerError
        When squeue fails for another reason than that it does not know the jobs any more.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    # Array numbers are asked for as a whole: a task that waits has no number of its own yet.
    wanted = sorted({job.partition("_")[0] for job in jobs}, key=int)
    found: dict[str, JobState] = {}
    fields = "--format=%F|%K|%T|%r|%N"
    done = _run(["squeue", "--noheader", "--array", "--states=all", fields, f"--jobs={','.join(wanted)}"])
    if done.returncode and "invalid job id" not in done.stderr.lower():
        raise NoAnswerError(done.stderr.strip() or f"squeue ended with status {done.returncode}")
    for line in _lines(done):
        array, task, state, reason, node = line.split("|", 4)
        found[array if task == "N/A" else f"{array}_{task}"] = JobState(state, "" if reason == "None" else reason, node)
    if shutil.which("sacct") is not None and any(job not in found for job in jobs):
        fields = "--format=JobID,State,NodeList"
        command = ["sacct", "--noheader", "--allocations", "--parsable2", fields, f"--jobs={','.join(wanted)}"]
        for line in _lines(_run(command)):  # without accounting it fails, and squeue's answer is all there is
            name, state, node = line.split("|", 2)
            if name not in found and re.fullmatch(r"\d+(_\d+)?", name):
                found[name] = JobState(state.split()[0], "", node)
    return {job: found[job] for job in jobs if job in found}


def max_array_size() -> int:
    """One more than the largest array index this site allows."""
    for line in _lines(_run(["scontrol", "show", "config"])):
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
    done = _run(["sbatch", "--parsable", *words])
    if done.returncode:
        raise InputError(
            f"sbatch refused: {(done.stderr or done.stdout).strip()}",
            where=f"sbatch {' '.join(words)}",
            next_step="jobs submitted before stay in the queue; correct the options and submit again",
        )
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A command's end; one that is not there or does not come back has failed, and says so as if by itself."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        said = f"{command[0]} did not answer within {_SECONDS} s; what it was asked may yet be done (see squeue)"
    except OSError as error:
        said = f"{command[0]} cannot be run: {error}"
    return subprocess.CompletedProcess(command, 1, "", said)


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a command said; nothing when it failed."""
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
