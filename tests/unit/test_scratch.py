"""Page files go when their owner is gone, whoever it was, and never before."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from metabatch.rundir.scratch import file_system, page_folder, remove_dead_folders, scratch_folder

HOLD = """
import sys, time
from metabatch.rundir.scratch import page_folder
with page_folder(1):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    return tmp_path


def test_pages_stay_while_their_owner_lives_and_go_when_it_is_killed(scratch: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        remove_dead_folders()
        assert len(list(scratch.iterdir())) == 1
        owner.kill()
    assert len(list(scratch.iterdir())) == 1
    remove_dead_folders()
    assert not list(scratch.iterdir())


def test_pages_of_another_container_that_is_gone_are_removed(scratch: Path) -> None:
    left = scratch / "metabatch-scratch-pages-elsewhere-4026531836-17-1700000000-abcd"
    left.mkdir()
    (left / ".held-by-metabatch").write_text("held\n")
    (left / "pages").write_bytes(b"x" * 100)
    making = scratch / "metabatch-scratch-pages-elsewhere-4026531836-18-1700000000-abcd"
    making.mkdir()
    with page_folder(1):
        assert not left.exists()
        assert making.exists()  # its owner may be about to lock it
    assert list(scratch.iterdir()) == [making]


def test_what_is_not_ours_stays_whatever_its_name_and_age(scratch: Path) -> None:
    for name in ("metabatch-results", "metabatch-scratch-of-mine"):
        (scratch / name).mkdir()
        (scratch / name / "kept").write_text("by somebody")
        os.utime(scratch / name, (0, 0))
    empty = scratch / "metabatch-scratch-pages-killed-at-birth"
    empty.mkdir()
    os.utime(empty, (0, 0))
    remove_dead_folders()
    assert sorted(p.name for p in scratch.rglob("kept")) == ["kept", "kept"]
    assert not empty.exists()


def test_scratch_is_no_file_system_in_memory_where_there_is_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = Path("/dev/shm")  # noqa: S108
    if file_system(in_memory) != "tmpfs" or file_system(Path(tempfile.gettempdir())) == "tmpfs":
        pytest.skip("needs /dev/shm in memory and a temporary folder on a disk")
    monkeypatch.setenv("SLURM_TMPDIR", str(in_memory))
    assert scratch_folder() != in_memory
    monkeypatch.setenv("SLURM_TMPDIR", "/no/such/folder")
    assert scratch_folder().is_dir()
