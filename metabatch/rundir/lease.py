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
    rung: str
    predicted_peak_bytes: int
    slurm_job_id: str | None
    attempt: int
    started: str
    heartbeat: int


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One line of attempts.jsonl."""

    attempt: int
    started: str
    ended: str
    outcome: str
    rung: str
    host: str
    slurm_job_id: str | None
    predicted_peak_bytes: int
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


@contextlib.contextmanager
def hold(instance: InstanceDir, rung: str, predicted_peak_bytes: int) -> Iterator[Owner]:
    """Own an instance for the time of the block; an attempt that was killed before is put on record first.

    Raises
    ------
    OwnedError
        When another live process owns it: seen at once by its heartbeat, or after `LEASE_SECONDS`.
    """
    instance.root.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(instance.lock, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    _acquire(lease, instance)
    _record_killed(instance)
    owner = Owner(
        process=this_process(),
        rung=rung,
        predicted_peak_bytes=predicted_peak_bytes,
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        attempt=1 + max((a.attempt for a in read_attempts(instance)), default=0),
        started=utc_now(),
        heartbeat=0,
    )
    write_bytes(instance.lease, to_json(owner))
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(instance, owner, stop), daemon=True)
    beat.start()
    try:
        yield owner
    finally:
        stop.set()
        beat.join()
        instance.lease.unlink(missing_ok=True)
        lease.release()


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
    record_attempt(
        instance,
        Attempt(
            attempt=owner.attempt, started=owner.started, ended=utc_now(), outcome="killed", rung=owner.rung,
            host=owner.process.host, slurm_job_id=owner.slurm_job_id,
            predicted_peak_bytes=owner.predicted_peak_bytes,
            measured_peak_bytes=progress.rss_bytes if progress else None,
            message="ended without a word: killed, out of memory, or its node went down (memory: as last reported)",
        ),
    )  # fmt: skip
    instance.lease.unlink(missing_ok=True)


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


def _heartbeat(instance: InstanceDir, owner: Owner, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(HEARTBEAT_SECONDS):
        count += 1
        with contextlib.suppress(OSError):  # a full disk must not end the training; the lock has its own heartbeat
            write_bytes(instance.lease, to_json(msgspec.structs.replace(owner, heartbeat=count)))
