"""Killed or stopped at any moment and started again by the same command, a run ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from metabatch.rundir.layout import is_passing
from tests.conftest import at_work, succeed

# As many as the patience of CI allows; METABATCH_KILLS=100 METABATCH_TERMS=20 for a night.
KILLS, TERMS = int(os.environ.get("METABATCH_KILLS", "8")), int(os.environ.get("METABATCH_TERMS", "4"))
pytestmark = pytest.mark.timeout(300 + 30 * max(KILLS, TERMS))
DEMO_RUN = (
    "run-all", "--quiet", "--demo", "--n-estimators", "40", "--n-folds", "2", "--learning-rate", "0.3",
    "--early-stopping-patience", "5", "--checkpoint-seconds", "0", "--analyses", "overfitting,thresholds,ablation",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    succeed(*DEMO_RUN, run)
    return run


def artefacts(run: Path) -> dict[str, str]:
    """sha256 of what a run is made for: every model file, the scores and metrics, the predictions."""
    files = [p for name in ("model", "members", "oof", "metrics", "predictions") for p in run.rglob(f"{name}*")]
    found = sorted({f for p in files for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()})
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.suffix != ".pkl"}


def leftovers(run: Path) -> list[str]:
    return [
        str(p) for p in run.rglob("*") if is_passing(p.name) or p.name in ("checkpoints", "progress.json", "lease.json")
    ]


def tree_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    return []


def has_begun(process: subprocess.Popen[bytes]) -> bool:
    """Whether a stage is at work: before, its own start-up may be what is stopped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any("metabatch.commands." in " ".join(child.cmdline()) for child in tree_of(process)[1:])
    return False


def check_finished(run: Path, undisturbed: Path, scratch: Path) -> None:
    assert artefacts(run) == artefacts(undisturbed)
    assert leftovers(run) == []
    assert list(scratch.iterdir()) == []


def test_a_run_killed_at_random_moments_ends_with_the_same_bits_and_no_leftovers(
    undisturbed: Path, tmp_path: Path
) -> None:
    """SIGKILL to any process of it, in any stage; a run that gets through is checked, and another one begun."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    dice, kills, number = random.Random(1), 0, 0
    run = tmp_path / "run-0"
    while kills < KILLS:
        process = at_work(*DEMO_RUN, run, env={"TMPDIR": str(scratch)})
        time.sleep(dice.uniform(0.2, 9.0))
        tree = tree_of(process)
        if process.poll() is None and tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(tree).kill()
                kills += 1
            process.wait(600)  # at once, unless what was killed had just come to its own end
            _, alive = psutil.wait_procs(tree, timeout=60)
            assert not alive, "killed, it left a process at work"
        elif process.returncode == 0:
            check_finished(run, undisturbed, scratch)
            number += 1
            run = tmp_path / f"run-{number}"
    succeed(*DEMO_RUN, run, env={"TMPDIR": str(scratch)})
    check_finished(run, undisturbed, scratch)


def test_a_run_asked_to_stop_says_75_every_time_and_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    dice, terms = random.Random(2), 0
    while terms < TERMS:
        process = at_work(*DEMO_RUN, run, env={"TMPDIR": str(scratch)})
        while process.poll() is None and not has_begun(process):
            time.sleep(0.02)
        time.sleep(dice.uniform(0.0, 9.0))
        if process.poll() is None:
            process.terminate()
            assert process.wait(60) == 75
            terms += 1
        else:
            assert process.returncode == 0
            check_finished(run, undisturbed, scratch)
            run = tmp_path / f"run-{terms}"
    succeed(*DEMO_RUN, run, env={"TMPDIR": str(scratch)})
    check_finished(run, undisturbed, scratch)
