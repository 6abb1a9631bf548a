"""The lock on a folder of a run: who holds it is at work there, and is seen to be alive.

It only tells a running owner from a dead one, so that work is not done twice; what is published stays correct without
it (see publish.py). It is filelock's SoftFileLease: an owner of this host and PID namespace that is gone is seen at
once, any other when its heartbeat has not been seen for `LEASE_SECONDS` of the contender's own clock. An owner that
could not renew its lease for so long has lost it, and notices. filelock takes a silent lock over by exchanging two
names, which NFS and its like refuse; there it is moved aside here (`_break`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from metabatch.errors import OwnedError
from metabatch.rundir.layout import LOCK, TEMPORARY, is_passing

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 5.0


@contextlib.contextmanager
def held(folder: Path, describe: Callable[[], str], *, wait: bool = True) -> Iterator[SoftFileLease]:
    """Own `folder` for the time of the block, and clear what killed owners left in it. `describe`: who has it.

    Raises
    ------
    OwnedError
        When another live process owns it: seen by its heartbeat, in about `HEARTBEAT_SECONDS`; without `wait` at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)
    _acquire(lock, folder / LOCK, describe, wait=wait)
    try:
        remove_leftovers(folder)
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Own a stage's folder for the time of the block; errors as in `held`."""
    with held(folder, lambda: f"another live process works in {folder}"):
        yield


def holds(folder: Path, token: str) -> bool:
    """Whether the claim named `token` still owns `folder`."""
    try:
        return bool(token) and token in (folder / LOCK).read_text()
    except OSError:
        return False


def claim_watch(folder: Path, token: str) -> Callable[[], bool]:
    """Asks from another host whether the claim named `token` is lost: it is gone, or silent for `LEASE_SECONDS`.

    The file is looked at every two seconds at most, and must be found lost twice: a contender may have it in its hands.
    """
    seen, since, looked, gone = _stamp(folder / LOCK), time.monotonic(), 0.0, 0

    def is_lost() -> bool:
        nonlocal seen, since, looked, gone
        now = time.monotonic()
        if now - looked >= 2.0:
            looked, stamp = now, _stamp(folder / LOCK)
            gone = 0 if holds(folder, token) else gone + 1
            if stamp != seen:
                seen, since = stamp, now
        return gone > 1 or now - since > LEASE_SECONDS

    return is_lost


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left in `folder`; only for its owner."""
    for entry in folder.iterdir():
        if not is_passing(entry.name) or entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif not entry.name.startswith(LOCK) or _age(entry) > LEASE_SECONDS:  # younger: a contender has it in its hands
            entry.unlink(missing_ok=True)


def _age(file: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - file.stat().st_mtime
    return 0.0


def _acquire(lock: SoftFileLease, file: Path, describe: Callable[[], str], *, wait: bool) -> None:
    begun = time.monotonic()
    first_seen: tuple[int, int] | None = None
    while True:
        try:
            lock.acquire(timeout=1.0 if wait else 0.0)
            return
        except Timeout:
            seen, waited = _stamp(file), time.monotonic() - begun
            first_seen = first_seen or seen
            if not wait or (seen is not None and seen != first_seen) or waited > 1.1 * LEASE_SECONDS + 10:
                raise OwnedError(describe(), next_step="wait for it, or look with bin/status") from None
            if seen is not None and waited > 1.1 * LEASE_SECONDS:
                _break(file, seen)


def _break(file: Path, judged: tuple[int, int]) -> None:
    """Move a lock that was silent for the whole lease out of the way, where filelock could not.

    What turns out to be another one was made in this very moment: it goes back. Its owner bears its name missing for
    less than a heartbeat, and publishes only what it still holds.
    """
    aside = file.with_name(f".{file.name}-{secrets.token_hex(8)}{TEMPORARY}")
    with contextlib.suppress(OSError):  # somebody else was quicker
        file.rename(aside)
        if _stamp(aside) != judged:
            os.link(aside, file)
        aside.unlink()


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes with every heartbeat and every new owner."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
