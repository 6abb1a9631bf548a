"""The stages of a run as Slurm jobs: what is not done yet, in order, each after what it needs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from shlex import join

import msgspec

from metabatch.errors import InputError
from metabatch.resources.slurm import is_there, max_array_size, sbatch
from metabatch.rundir.attempts import read_attempts
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.jobs import Job, jobs_of
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Plan, PlannedInstance
from metabatch.rundir.markers import utc_now
from metabatch.rundir.state import RunState, survey, training_memory, training_script
from metabatch.rundir.submissions import SubmittedJob, record_submission

# After a kill for memory the next attempt asks for so much more.
MORE_MEMORY = 1.5
# Consolidating and evaluating read models and scores, not the table; at least this much for the libraries, MiB.
STAGE_MEMORY_MB = 2048
_JOBS = Path(__file__).resolve().parents[2] / "jobs"


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """What was (or would be) submitted. `notes`: what was left out, and why."""

    run: str
    dry_run: bool
    jobs: list[SubmittedJob]
    notes: list[str]


@dataclass(frozen=True)
class _Array:
    """Instances that can be one array: the same memory, and task numbers the site allows."""

    mem_mb: int
    first: int
    instances: tuple[int, ...]


def submit(
    run: RunDir, *, throttle: int | None = None, site: Sequence[str] = (), train: Sequence[str] = (),
    force: bool = False, dry_run: bool = False,
) -> Chain:  # fmt: skip
    """Submit what is not done: instances as arrays, then consolidate, then evaluate.

    Parameters
    ----------
    throttle : int, optional
        Most tasks of an array that run at once.
    site, train : sequence of str
        Options for every sbatch; and for train-instance.
    force : bool
        Everything again, done or not.

    Raises
    ------
    InputError
        There is no Slurm here, or it refuses a job; those submitted before are on record and stay.
    """
    plan = open_plan(run)
    if not dry_run and not is_there():
        raise InputError(
            "there is no Slurm here (no squeue and sbatch on PATH)",
            expected="a login node of a cluster",
            next_step="bin/run-all, or see the lines with --dry-run",
        )
    with contextlib.nullcontext() if dry_run else hold_folder(run.logs):  # one submits at a time, and may write here
        return _submit(run, plan, throttle, [*site], train, force=force, dry_run=dry_run)


def _submit(
    run: RunDir, plan: Plan, throttle: int | None, site: list[str], train: Sequence[str], *, force: bool, dry_run: bool
) -> Chain:
    jobs = jobs_of(run, plan)
    if jobs.unknown is not None:
        raise InputError(
            f"Slurm cannot be asked what is in its queue: {jobs.unknown}",
            expected="an answer, so that nothing is submitted twice",
            next_step="try again later",
        )
    state = survey(run, jobs)
    queue = _Queue(run, plan, site, ["--force"] if force else [], jobs.stages, dry_run=dry_run)
    now, wait_for = _to_train(plan, state, jobs.instances, queue.notes, force=force)
    arrays = _arrays([(p, _memory(run, p, plan, jobs.instances.get(p.index))) for p in now], max_array_size())
    needed = [*wait_for.values(), *(queue.train(array, throttle, train) for array in arrays)]
    outside = [str(i.index) for i in state.instances if i.state == "running" and i.index not in wait_for]
    if outside:
        queue.notes.append(
            f"instance {', '.join(outside)} is being trained outside Slurm: consolidate and evaluate were not "
            "submitted; submit again when it is done"
        )
    else:
        _finish(state, jobs.stages, needed, queue, anew=bool(arrays) or force)
    return Chain(run=str(run.root), dry_run=dry_run, jobs=queue.jobs, notes=queue.notes)


@dataclass
class _Queue:
    """Puts jobs into Slurm's queue and on record; with `dry_run` only says what it would."""

    run: RunDir
    plan: Plan
    site: list[str]
    forced: list[str]
    stages: Mapping[str, Job]
    dry_run: bool
    jobs: list[SubmittedJob] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def train(self, array: _Array, throttle: int | None, options: Sequence[str]) -> str:
        """An array of instances; returns its job number."""
        tasks = array_spec([i - array.first for i in array.instances]) + (f"%{throttle}" if throttle else "")
        export = [f"--export=ALL,METABATCH_FIRST_INSTANCE={array.first}"] if array.first else []
        words = [*training_memory(self.plan, array.mem_mb), f"--array={tasks}", *export]
        return self._add("train", training_script(self.plan), array.mem_mb, words, options, array)

    def stage(self, name: str, after: Sequence[str]) -> str:
        """consolidate or evaluate, after other jobs ended well; returns its job number."""
        words = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        memory = max(STAGE_MEMORY_MB, *(p.mem_request_mb for p in self.plan.instances))
        memory = max(memory, _more_than(self.stages.get(name)))
        return self._add(name, f"{name}.sh", memory, [f"--mem={memory}M", *words], ())

    def _add(
        self, stage: str, script: str, mem_mb: int, words: Sequence[str], options: Sequence[str],
        array: _Array | None = None,
    ) -> str:  # fmt: skip
        logs = str(self.run.logs.resolve()).replace("%", "%%")  # sbatch puts numbers in for %j and its like
        command = [
            f"--output={logs}/{stage}-{'%A_%a' if array else '%j'}.log", *self.site, *words, str(_JOBS / script),
            str(self.run.root.resolve()), *options, *self.forced,
        ]  # fmt: skip
        number = f"<{stage} {len(self.jobs)}>" if self.dry_run else sbatch(command)
        job = SubmittedJob(
            submitted=utc_now(), job_id=number, stage=stage, plan=self.plan.fingerprint, mem_mb=mem_mb,
            instances=array.instances if array else (), first=array.first if array else 0,
            command=join(["sbatch", *command]),
        )  # fmt: skip
        if not self.dry_run:
            record_submission(self.run, job)
        self.jobs.append(job)
        return number


def _to_train(
    plan: Plan, state: RunState, jobs: Mapping[int, Job], notes: list[str], *, force: bool
) -> tuple[list[PlannedInstance], dict[int, str]]:
    """Instances to submit now, and the jobs of those that are on their way."""
    wait_for: dict[int, str] = {}
    now = []
    for planned, found in zip(plan.instances, state.instances, strict=True):
        job = jobs.get(planned.index)
        if found.state in ("queued", "running"):
            if job is not None and job.is_open:
                wait_for[planned.index] = job.name
                notes.append(f"instance {planned.index} is on its way: {job.describe()}")
        elif force or found.state != "done":
            now.append(planned)
    return now, wait_for


def _finish(state: RunState, stages: Mapping[str, Job], needed: list[str], queue: _Queue, *, anew: bool) -> None:
    """Submit consolidate and evaluate where they are not done and not on their way. `anew`: whatever they are now."""
    made = (
        ("consolidate", state.ensemble, state.ensemble_detail),
        ("evaluate", state.evaluation, state.evaluation_detail),
    )
    for stage, now, detail in made:
        job = stages.get(stage)
        if not anew and job is not None and job.is_open:
            queue.notes.append(f"{stage} is on its way: {job.describe()}")
            needed = [job.name]
        elif anew or needed or now != "done":
            if detail:
                queue.notes.append(f"{stage} is done again: {detail}")
            needed = [queue.stage(stage, needed)]
            anew = True


def _memory(run: RunDir, planned: PlannedInstance, plan: Plan, job: Job | None) -> int:
    """MiB to ask for: the plan's request, or more than what proved too little."""
    short = [
        attempt.limit_bytes >> 20
        for attempt in read_attempts(run.instance(planned.index))
        if attempt.plan == plan.fingerprint and attempt.outcome in ("out-of-memory", "over-budget", "not-tried")
    ]
    return max(planned.mem_request_mb, math.ceil(MORE_MEMORY * max(short, default=0)), _more_than(job))


def _more_than(job: Job | None) -> int:
    """MiB to ask for after a job that Slurm killed for memory; 0 after any other."""
    killed = job is not None and job.state is not None and job.state.state == "OUT_OF_MEMORY"
    return math.ceil(MORE_MEMORY * (job.mem_mb or 0)) if killed and job is not None else 0


def _arrays(wanted: Sequence[tuple[PlannedInstance, int]], limit: int) -> list[_Array]:
    """Instances (with the MiB each asks for) in arrays of equal memory whose task numbers stay below `limit`."""
    ordered = sorted((memory, planned.index // limit, planned.index) for planned, memory in wanted)
    return [
        _Array(memory, chunk * limit, tuple(index for _, _, index in members))
        for (memory, chunk), members in groupby(ordered, key=lambda w: w[:2])
    ]


def array_spec(numbers: Sequence[int]) -> str:
    """Task numbers as Slurm writes them: ``[0, 1, 2, 5]`` -> ``0-2,5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
