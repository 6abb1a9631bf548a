"""A disk that fills up at any point of a run: one clear message, nothing lost, and on with it when there is space."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DEMO, start, succeed
from tests.faults.test_kills import artefacts, leftovers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root (mounts a small file system)"
)
WORDS = (
    "--quiet",
    "--n-estimators",
    "40",
    "--n-folds",
    "2",
    "--learning-rate",
    "0.3",
    "--holdout-fraction",
    "0.35",
    "--analyses",
    "curves",
)
DISK_KB = 24_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "none", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    succeed("run-all", *WORDS, DEMO, run)
    return run


def leave(place: Path, kb: int) -> Path:
    """Fill the disk but for so many KB."""
    filler = place / "filler"
    filler.write_bytes(b"x" * max(0, shutil.disk_usage(place).free - (kb << 10)))
    return filler


def test_a_full_disk_at_every_stage_is_said_and_the_run_goes_on_when_there_is_space(
    small_disk: Path, undisturbed: Path
) -> None:
    run = small_disk / "run"
    used = sum(p.stat().st_size for p in undisturbed.rglob("*") if p.is_file()) >> 10
    assert used < DISK_KB
    failed = set()
    # From nothing at all to nearly enough: it fails while planning, at a checkpoint, publishing, in the report.
    for kb in (0, 40, 300, 1200, used // 2, used * 3 // 4, used - 200):
        filler = leave(small_disk, kb)
        before = finished(run)
        outcome = start("run-all", "--checkpoint-seconds", "0", *WORDS, DEMO, run)
        if outcome.code:
            assert outcome.code == 3, outcome.err
            assert "no space left on the disk" in outcome.err
            assert "Traceback" not in outcome.err
            failed.add(
                next(w for w in outcome.err.split() if w in ("plan", "train-instance", "consolidate", "evaluate"))
            )
        assert before <= finished(run), "a finished stage was lost"
        filler.unlink()
    assert len(failed) >= 3, failed
    succeed("run-all", *WORDS, DEMO, run)
    assert artefacts(run) == artefacts(undisturbed)
    assert leftovers(run) == []


@pytest.mark.parametrize(("stage", "folder"), [("consolidate", "ensemble"), ("evaluate", "evaluation")])
def test_a_stage_done_again_on_a_full_disk_keeps_what_it_made_before(
    small_disk: Path, undisturbed: Path, stage: str, folder: str
) -> None:
    run = small_disk / "run"
    shutil.copytree(undisturbed, run)
    before = {p: p.read_bytes() for p in (run / folder).rglob("*") if p.is_file()}
    for kb in (0, 20, 200):
        filler = leave(small_disk, kb)
        outcome = start(stage, "--quiet", "--force", run)
        assert outcome.code == 3, (kb, outcome.err)
        assert "no space left on the disk" in outcome.err
        filler.unlink()
        assert {p: p.read_bytes() for p in (run / folder).rglob("*") if p.is_file()} == before
    assert "already" in succeed(stage, run).out


def finished(run: Path) -> set[str]:
    return {str(p.parent.relative_to(run)) for p in run.rglob("done.json")}


def test_a_checkpoint_for_which_there_is_no_space_names_its_file(small_disk: Path) -> None:
    run = small_disk / "run"
    succeed("plan", *WORDS, DEMO, run)
    filler = leave(small_disk, 60)
    outcome = start("train-instance", "--quiet", "--checkpoint-seconds", "0", run, "0")
    assert outcome.code == 3
    assert "no space left" in outcome.err
    assert ".ckpt" in outcome.err
    filler.unlink()
    succeed("train-instance", "--quiet", run, "0")
