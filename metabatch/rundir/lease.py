"""Who is working on a folder of a run: a lease with a heartbeat.

The lease only tells a running owner from a dead one, so that work is not done twice; what is published stays correct
without it (see publish.py). The lock is filelock's SoftFileLease: an owner of this host and PID namespace that is gone
is seen at once, any other when its heartbeat has not been seen for `LEASE_SECONDS` of the contender's own clock. An
owner that could not renew its lease for so long has lost it, and notices.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from filelock import SoftFileLease, Timeout

from metabatch.errors import OwnedError
from metabatch.resources.process import Identity, is_gone, this_process
from metabatch.resources.progress import read_progress
from metabatch.resources.slurm import this_job
from metabatch.rundir.attempts import Attempt, read_attempts, record_attempt
from metabatch.rundir.layout import LOCK, InstanceDir, is_passing
from metabatch.rundir.manifests import to_json
from metabatch.rundir.markers import is_marked, utc_now
from metabatch.rundir.publish import remove_leftovers, write_bytes

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


def read_owner(instance: InstanceDir) -> Owner | None:
    """The owner recorded in lease.json, or None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(instance.lease.read_bytes(), type=Owner)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


class Lease:
    """An instance owned by this process; one attempt after the other is begun and ended on it.

    token : names this claim; it stands in the lock file as long as the claim holds.
    """

    def __init__(self, instance: InstanceDir, plan: str, lock: SoftFileLease) -> None:
        self._instance, self._plan, self._lock = instance, plan, lock
        self.token = lock.token or ""  # filelock tells it to the thread that holds the lock only
        self._owner: Owner | None = None
        self._writing = threading.Lock()  # of lease.json: the heartbeat must not bring back an attempt that ended

    def is_lost(self) -> bool:
        """Whether somebody else took the instance over, because no heartbeat of ours got through.

        To be asked by the thread that holds the lease.
        """
        return self._lock.compromise is not None

    def begin(self, rung: str, predicted_peak_bytes: int, limit_bytes: int) -> int:
        """Announce an attempt in lease.json; returns its number."""
        owner = self._attempting(rung, predicted_peak_bytes, limit_bytes)
        with self._writing:
            write_bytes(self._instance.lease, to_json(owner))
            self._owner = owner
        return owner.attempt

    def skip(self, rung: str, predicted_peak_bytes: int, limit_bytes: int, message: str) -> None:
        """Put on record, once, that a rung is not tried."""
        record = _record(self._attempting(rung, predicted_peak_bytes, limit_bytes), "not-tried", None, message)
        told = (record.plan, record.outcome, record.rung, record.limit_bytes, record.message)
        if told not in {(a.plan, a.outcome, a.rung, a.limit_bytes, a.message) for a in read_attempts(self._instance)}:
            record_attempt(self._instance, record)

    def _attempting(self, rung: str, predicted_peak_bytes: int, limit_bytes: int) -> Owner:
        return Owner(
            process=this_process(),
            plan=self._plan,
            rung=rung,
            predicted_peak_bytes=predicted_peak_bytes,
            limit_bytes=limit_bytes,
            slurm_job_id=this_job(),
            attempt=1 + max((a.attempt for a in read_attempts(self._instance)), default=0),
            started=utc_now(),
            heartbeat=0,
        )

    def end(self, outcome: str, measured_peak_bytes: int | None, message: str | None) -> None:
        """Put the attempt on record; without one there is nothing to do."""
        with self._writing:
            if self._owner is not None:
                record_attempt(self._instance, _record(self._owner, outcome, measured_peak_bytes, message))
                if not self.is_lost():
                    self._instance.lease.unlink(missing_ok=True)
                self._owner = None

    def beat(self, stop: threading.Event) -> None:
        """Renew lease.json until `stop`."""
        count = 0
        while not stop.wait(HEARTBEAT_SECONDS):
            count += 1
            # A full disk must not end the training; the lock has its own heartbeat.
            with self._writing, contextlib.suppress(OSError):
                if self._owner is not None and holds(self._instance.root, self.token):
                    write_bytes(self._instance.lease, to_json(msgspec.structs.replace(self._owner, heartbeat=count)))


def holds(folder: Path, token: str) -> bool:
    """Whether the claim named `token` still owns `folder`."""
    try:
        return bool(token) and token in (folder / LOCK).read_text()
    except OSError:
        return False


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
        When another live process owns it: seen by its heartbeat, in about `HEARTBEAT_SECONDS`.
    """
    with _held(instance.root, lambda: _describe(instance)) as lock:
        _record_killed(instance)
        lease = Lease(instance, plan, lock)
        stop = threading.Event()
        beat = threading.Thread(target=lease.beat, args=(stop,), daemon=True)
        beat.start()
        try:
            yield lease
        finally:
            stop.set()
            beat.join()
            if not lease.is_lost():
                instance.lease.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Own a stage's folder for the time of the block; errors as in `hold`."""
    with _held(folder, lambda: f"another live process works in {folder}"):
        yield


def tidy(folder: Path, instance: InstanceDir | None = None) -> None:
    """Take away what a killed process left in the folder of a finished stage; nothing while somebody is at work."""
    try:
        found = [p.name for p in folder.iterdir()]
    except OSError:
        return
    more = set() if instance is None else {instance.lease.name, instance.progress.name, instance.checkpoints.name}
    if not any(n in more or is_passing(n) for n in found):
        return
    with contextlib.suppress(OwnedError, OSError), _held(folder, lambda: "", wait=False):  # not ours, or read-only
        if instance is not None:
            _record_killed(instance)
            instance.progress.unlink(missing_ok=True)
            shutil.rmtree(instance.checkpoints, ignore_errors=True)


def is_alive(instance: InstanceDir, owner: Owner) -> bool:
    """Whether the recorded owner is at work: it is not known to be gone, and its heartbeat is fresh."""
    if is_gone(owner.process):
        return False
    try:
        return time.time() - instance.lease.stat().st_mtime <= LEASE_SECONDS
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _held(folder: Path, describe: Callable[[], str], *, wait: bool = True) -> Iterator[SoftFileLease]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    _acquire(lock, folder / LOCK, describe, wait=wait)
    try:
        remove_leftovers(folder)
        yield lock
    finally:
        lock.release()


def _acquire(lock: SoftFileLease, file: Path, describe: Callable[[], str], *, wait: bool) -> None:
    deadline = time.monotonic() + LEASE_SECONDS * 1.2
    first_seen: tuple[int, int] | None = None
    while True:
        try:
            lock.acquire(timeout=1.0 if wait else 0.0)
            return
        except Timeout:
            seen = _stamp(file)
            first_seen = first_seen or seen
            if not wait or (seen is not None and seen != first_seen) or time.monotonic() > deadline:
                raise OwnedError(describe(), next_step="wait for it, or look with bin/status") from None


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes with every heartbeat and every new owner."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _record_killed(instance: InstanceDir) -> None:
    """An owner that left its lease.json behind had no time to write down how it ended."""
    owner = read_owner(instance)
    if owner is None:
        return
    progress = read_progress(instance.progress)
    if is_marked(instance.root):
        outcome, message = "done", "ended without a word after its work was published"
    else:
        outcome = "killed"
        message = "ended without a word: killed, out of memory, or its node went down (memory: as last reported)"
    record_attempt(instance, _record(owner, outcome, progress.anonymous_bytes if progress else None, message))
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


def _describe(instance: InstanceDir) -> str:
    owner = read_owner(instance)
    if owner is None:
        return f"instance {instance.index} is owned by another live process"
    job = f", Slurm job {owner.slurm_job_id}" if owner.slurm_job_id else ""
    return (
        f"instance {instance.index} is being trained by pid {owner.process.pid} on {owner.process.host}{job}, "
        f"attempt {owner.attempt}, since {owner.started}"
    )
