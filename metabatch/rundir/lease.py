"""Who trains an instance: its owner on record beside the lock, and one attempt after the other."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from filelock import SoftFileLease

from metabatch.errors import InputError, OwnedError
from metabatch.resources.process import Identity, is_gone, this_process
from metabatch.resources.progress import read_progress
from metabatch.resources.slurm import this_job
from metabatch.rundir.attempts import Attempt, read_attempts, record_attempt
from metabatch.rundir.layout import InstanceDir, is_passing
from metabatch.rundir.lock import HEARTBEAT_SECONDS, LEASE_SECONDS, held, holds
from metabatch.rundir.manifests import Done, load, to_json
from metabatch.rundir.markers import MARKER, utc_now
from metabatch.rundir.publish import write_bytes


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
        """Whether no heartbeat of ours got through, so that somebody else has taken the instance over, or may.

        To be asked by the thread that holds the lease.
        """
        return self._lock.compromise is not None

    def is_ours(self) -> bool:
        """Whether our claim stands; asked of the file itself, twice, since a contender may be looking at it."""
        if not holds(self._instance.root, self.token):
            time.sleep(1.0)
        return holds(self._instance.root, self.token)

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
                if self.is_ours():
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
    with held(instance.root, lambda: _describe(instance)) as lock:
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
            if lease.is_ours():
                instance.lease.unlink(missing_ok=True)


def tidy(folder: Path, instance: InstanceDir | None = None) -> None:
    """Take away what a killed process left in the folder of a finished stage; nothing while somebody is at work."""
    try:
        found = [p.name for p in folder.iterdir()]
    except OSError:
        return
    more = set() if instance is None else {instance.lease.name, instance.progress.name, instance.checkpoints.name}
    if not any(n in more or is_passing(n) for n in found):
        return
    with contextlib.suppress(OwnedError, OSError), held(folder, lambda: "", wait=False):  # not ours, or read-only
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


def _record_killed(instance: InstanceDir) -> None:
    """An owner that left its lease.json behind had no time to write down how it ended."""
    owner = read_owner(instance)
    if owner is None:
        return
    progress = read_progress(instance.progress)
    if _finished_since(instance, owner):
        outcome, message = "done", "ended without a word after its work was published"
    else:
        outcome = "killed"
        message = "ended without a word: killed, out of memory, or its node went down (memory: as last reported)"
    record_attempt(instance, _record(owner, outcome, progress.anonymous_bytes if progress else None, message))
    instance.lease.unlink(missing_ok=True)


def _finished_since(instance: InstanceDir, owner: Owner) -> bool:
    """Whether the finished stage is this owner's work, not an older one's that it was told to replace."""
    try:
        return load(instance.root / MARKER, Done).finished >= owner.started
    except InputError:
        return False


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
