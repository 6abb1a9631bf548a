"""The lock on a folder: a dead owner's is taken over also where names cannot be exchanged, a live one's never."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from metabatch.errors import OwnedError
from metabatch.rundir import lock
from metabatch.rundir.layout import LOCK

LEASE, HEARTBEAT = 3.0, 0.3
HOLD = f"""
import sys, time
from pathlib import Path
from metabatch.rundir import lock
lock.LEASE_SECONDS, lock.HEARTBEAT_SECONDS = {LEASE}, {HEARTBEAT}
with lock.hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "folder"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.fixture
def as_on_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses RENAME_EXCHANGE, as NFS does; none that does can be mounted everywhere."""
    monkeypatch.setattr(filelock._soft, "exchange_names", lambda source, target: False)
    monkeypatch.setattr(filelock._util, "exchange_names", lambda source, target: False)
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", HEARTBEAT)


def test_a_killed_owner_is_taken_over_where_names_cannot_be_exchanged(
    owner: subprocess.Popen[bytes], as_on_nfs: None, tmp_path: Path
) -> None:
    owner.kill()
    owner.wait()
    begun = time.monotonic()
    with lock.hold_folder(tmp_path / "folder"):
        assert time.monotonic() - begun >= LEASE
        assert [p.name for p in (tmp_path / "folder").iterdir()] == [LOCK]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_live_owner_is_not(owner: subprocess.Popen[bytes], as_on_nfs: None, tmp_path: Path) -> None:
    with pytest.raises(OwnedError), lock.hold_folder(tmp_path / "folder"):
        raise AssertionError
    assert owner.poll() is None
    assert (tmp_path / "folder" / LOCK).exists()


def test_a_lock_made_in_the_very_moment_goes_back_to_its_owner(tmp_path: Path) -> None:
    file = tmp_path / LOCK
    file.write_text("somebody's")
    before = file.stat().st_ino
    lock._break(file, (before, 0))  # judged by another time stamp than it has now
    assert (file.stat().st_ino, file.read_text()) == (before, "somebody's")
    assert list(tmp_path.iterdir()) == [file]
