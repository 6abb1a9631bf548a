"""One instance, one owner: a live one is never taken over, a dead one after a stated time, wherever it ran."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metabatch.rundir.lock import LEASE_SECONDS
from tests.conftest import DEMO, NO_ANALYSES, ROOT, at_work, start, succeed, wait_for, wait_until

LONG = ("--n-estimators", "5000", "--early-stopping-patience", "0", *NO_ANALYSES)
SHORT = ("--n-folds", "0", "--calibration", "none", "--n-estimators", "400", "--learning-rate", "0.3", *NO_ANALYSES)
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare (another PID namespace)"
)


def attempts(run: Path) -> list[str]:
    lines = (run / "instances/00/attempts.jsonl").read_text().splitlines()
    return [json.loads(line)["outcome"] for line in lines]


def test_of_eight_processes_started_at_once_exactly_one_trains_and_the_others_say_who(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", *LONG, DEMO, run)
    words = [str(ROOT / "bin" / "train-instance"), str(run), "0"]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)) for _ in range(8)
        ]
        for process in started:
            stack.callback(process.kill)
        wait_until(lambda: sum(p.poll() is not None for p in started) >= 7, "seven that give up", seconds=120)
        working = [p for p in started if p.poll() is None]
        assert len(working) == 1
        for process in started:
            if process is not working[0]:
                assert process.returncode == 5
                assert f"is being trained by pid {working[0].pid} on " in process.communicate()[1]
        working[0].send_signal(signal.SIGTERM)
        working[0].communicate()
        assert working[0].returncode == 75
    assert attempts(run) == ["interrupted"]


@pytest.fixture
def in_a_container(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A training in a PID namespace of its own, under this host's name, as in a container."""
    run = tmp_path / "run"
    succeed("plan", "--quiet", *LONG, DEMO, run)
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", str(ROOT / "bin" / "train-instance")]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    with subprocess.Popen([*words, "--checkpoint-seconds", "0", str(run), "0"], env=env) as process:
        wait_for(run / "instances/00/lease.json")
        yield run, process
        process.kill()


@needs_namespaces
def test_a_live_owner_in_another_pid_namespace_is_not_taken_over(
    in_a_container: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    run, process = in_a_container
    refused = start("train-instance", run, "0")
    assert refused.code == 5
    assert re.search(r"is being trained by pid \d+ on ", refused.err)
    assert succeed("status", "--json", run).json["instances"][0]["state"] == "running"
    assert process.poll() is None


@needs_namespaces
def test_a_killed_owner_in_another_pid_namespace_is_taken_over_after_the_stated_time(
    in_a_container: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    """Its process id means nothing here, so only the silence of its heartbeat tells."""
    run, process = in_a_container
    kept = run / "instances/00/checkpoints"
    wait_until(lambda: bool(list(kept.glob("*.ckpt"))), "a checkpoint")
    process.kill()
    process.wait()
    begun = time.monotonic()
    successor = at_work("train-instance", run, "0")
    wait_until((run / "instances/00/attempts.jsonl").exists, "a successor", seconds=1.5 * LEASE_SECONDS)
    assert 0.8 * LEASE_SECONDS < time.monotonic() - begun < 1.3 * LEASE_SECONDS
    assert attempts(run) == ["killed"]
    wait_until(lambda: _owner_pid(run) == successor.pid, "its lease")
    successor.terminate()
    assert successor.wait(60) == 75


def _owner_pid(run: Path) -> int | None:
    try:
        return int(json.loads((run / "instances/00/lease.json").read_text())["process"]["pid"])
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def test_an_owner_that_was_frozen_and_taken_over_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    """A suspended machine: both processes stand still for longer than the lease, then go on."""
    run = tmp_path / "run"
    succeed("plan", "--quiet", *SHORT, DEMO, run)
    words = [str(ROOT / "bin" / "train-instance"), str(run), "0"]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as frozen:
        wait_for(run / "instances/00/progress.json")  # its child is at work
        family = [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children(recursive=True)]
        for member in family:
            member.suspend()
        succeed("train-instance", "--quiet", run, "0")
        published = _times(run)
        for member in family:
            member.resume()
        assert frozen.wait(60) == 5
        assert frozen.stderr is not None
        assert "taken over" in frozen.stderr.read()
    assert _times(run) == published
    assert succeed("status", "--json", run).json["instances"][0]["state"] == "done"
    succeed("consolidate", "--quiet", run)


def _times(run: Path) -> dict[Path, int]:
    files = [p for p in (run / "instances/00").rglob("*") if p.is_file() and p.name != "attempts.jsonl"]
    return {p: p.stat().st_mtime_ns for p in files}
