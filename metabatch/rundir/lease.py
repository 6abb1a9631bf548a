"""Who is working on an instance: a lease with a heartbeat, and the record of attempts.

The lease only tells a running owner from a dead one, so that work is not done twice; what is
published stays correct without it (see publish.py). The lock is filelock's SoftFileLease: it judges
expiry by the contender's own clock, and a process of this host that is gone at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import msgspec
from filelock import SoftFileLease, Timeout

from metabatch.errors import OwnedError
from metabatch.resources.process import Identity, is_gone, this_process
from metabatch.resources.progress import read_progress
from metabatch.rundir.layout import InstanceDir
from metabatch.rundir.manifests import to_json
from metabatch.rundir.markers import utc_now
from metabatch.rundir.publish import write_bytes

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 5.0


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """lease.json: the process at work. `heartbeat` counts up every few seconds while it lives."""

    process: Identity
    plan: str
    rung: str
    predicted_peak_bytes: int
    limit_bytes: int
    slurm_job_id: str | None
    attempt: int
    started: str
    heartbeat: int


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


def read_owner(instance: InstanceDir) -> Owner | None:
    """The owner recorded in lease.json, or None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(instance.lease.read_bytes(), type=Owner)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def read_attempts(instance: InstanceDir) -> list[Attempt]:
    """All attempts on record, oldest first; a line cut short by a kill is left out."""
    if not instance.attempts.is_file():
        return []
    found = []
    for line in instance.attempts.read_bytes().splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(line, type=Attempt))
    return found


def record_attempt(instance: InstanceDir, attempt: Attempt) -> None:
    with instance.attempts.open("ab") as handle:
        handle.write(msgspec.json.encode(attempt) + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


class Lease:
    """An instance owned by this process; one attempt after the other is begun and ended on it."""

    def __init__(self, instance: InstanceDir, plan: str) -> None:
        self._instance, self._plan = instance, plan
        self._owner: Owner | None = None
        self._writing = threading.Lock()  # of lease.json: the heartbeat must not bring back an attempt that ended

    def begin(self, rung: str, predicted_peak_bytes: int, limit_bytes: int) -> int:
        """Announce an attempt in lease.json; returns its number."""
        owner = Owner(
            process=this_process(),
            plan=self._plan,
            rung=rung,
            predicted_peak_bytes=predicted_peak_bytes,
            limit_bytes=limit_bytes,
            slurm_job_id=os.environ.get("SLURM_JOB_ID"),
            attempt=1 + max((a.attempt for a in read_attempts(self._instance)), default=0),
            started=utc_now(),
            heartbeat=0,
        )
        with self._writing:
            write_bytes(self._instance.lease, to_json(owner))
            self._owner = owner
        return owner.attempt

    def end(self, outcome: str, measured_peak_bytes: int | None, message: str | None) -> None:
        """Put the attempt on record; without one there is nothing to do."""
        with self._writing:
            if self._owner is not None:
                record_attempt(self._instance, _record(self._owner, outcome, measured_peak_bytes, message))
                self._instance.lease.unlink(missing_ok=True)
                self._owner = None

    def beat(self, stop: threading.Event) -> None:
        """Renew lease.json until `stop`."""
        count = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            count += 1
            # A full disk must not end the training; the lock has its own heartbeat.
            with self._writing, contextlib.suppress(OSError):
                if self._owner is not None:
                    write_bytes(self._instance.lease, to_json(msgspec.structs.replace(self._owner, heartbeat=count)))


@contextlib.contextmanager
def hold(instance: InstanceDir, plan: str) -> Iterator[Lease]:
    """Own an instance for the time of the block; an attempt that was killed before is put on record first.

    Parameters
    ----------
    plan : str
        Fingerprint of the plan it is trained under.

    Raises
    ------
    OwnedError
        When another live process owns it: seen at once by its heartbeat, or after `LEASE_SECONDS`.
    """
    instance.root.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(instance.lock, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    _acquire(lock, instance)
    _record_killed(instance)
    lease = Lease(instance, plan)
    stop = threading.Event()
    beat = threading.Thread(target=lease.beat, args=(stop,), daemon=True)
    beat.start()
    try:
        yield lease
    finally:
        stop.set()
        beat.join()
        instance.lease.unlink(missing_ok=True)
        lock.release()


def is_alive(instance: InstanceDir, owner: Owner) -> bool:
    """Whether the recorded owner is at work: it is not known to be gone, and its heartbeat is fresh."""
    if is_gone(owner.process):
        return False
    try:
        return time.time() - instance.lease.stat().st_mtime <= LEASE_SECONDS
    except FileNotFoundError:
        return False


def _record_killed(instance: InstanceDir) -> None:
    """An owner that left its lease.json behind had no time to write down how it ended."""
    owner = read_owner(instance)
    if owner is None:
        return
    progress = read_progress(instance.progress)
    message = "ended without a word: killed, out of memory, or its node went down (memory: as last reported)"
    record_attempt(instance, _record(owner, "killed", progress.anonymous_bytes if progress else None, message))
    instance.lease.unlink(missing_ok=True)


def _record(owner: Owner, outcome: str, measured_peak_bytes: int | None, message: str | None) -> Attempt:
    return Attempt(
        attempt=owner.attempt,
        started=owner.started,
        ended=utc_now(),
        outcome=outcome,
        plan=owner.plan,
        rung=owner.rung,
        host=owner.process.host,
        slurm_job_id=owner.slurm_job_id,
        predicted_peak_bytes=owner.predicted_peak_bytes,
        limit_bytes=owner.limit_bytes,
        measured_peak_bytes=measured_peak_bytes,
        message=message,
    )


def _acquire(lease: SoftFileLease, instance: InstanceDir) -> None:
    deadline = time.monotonic() + LEASE_SECONDS * 1.2
    first_seen: Owner | None = None
    while True:
        try:
            lease.acquire(timeout=1.0)
            return
        except Timeout:
            owner = read_owner(instance)
            if first_seen is None:
                first_seen = owner
            alive = owner is not None and first_seen is not None and owner != first_seen
            if alive or time.monotonic() > deadline:
                raise OwnedError(_describe(instance, owner), next_step="wait for it, or look with bin/status") from None


def _describe(instance: InstanceDir, owner: Owner | None) -> str:
    if owner is None:
        return f"instance {instance.index} is owned by another live process"
    job = f", Slurm job {owner.slurm_job_id}" if owner.slurm_job_id else ""
    return (
        f"instance {instance.index} is being trained by pid {owner.process.pid} on {owner.process.host}{job}, "
        f"attempt {owner.attempt}, since {owner.started}"
    )
