"""Plan and train as a user does, with what the kernel says of it; shared by the comparisons."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Runs a command under a hard kernel memory limit and prints peak_anon and oom_kills.
MEMLIMIT = Path(os.environ.get("METABATCH_MEMLIMIT", ROOT.parent / "shared" / "hpc" / "memlimit.sh"))
NO_FOLDS = ("--n-folds", "0", "--calibration", "none")


@dataclass(frozen=True)
class Trained:
    """`usage`: resource_usage.json; `kernel`: what the limit's own accounts say, empty without a limit."""

    usage: dict[str, Any]
    kernel: dict[str, int]
    seconds: float

    def phase(self, name: str) -> float:
        return sum(p["seconds"] for p in self.usage["phases"] if p["name"] == name)


def make_plan(data: Path, run: Path, *words: str) -> dict[str, Any]:
    """`plan` without a holdout, without early stopping and without analyses, unless asked for; plan.json."""
    usual = {"--holdout-fraction": "0", "--early-stopping-patience": "0", "--analyses": "none"}
    if "incremental" in words:  # nothing is boosted
        del usual["--early-stopping-patience"]
    fixed = [word for option, value in usual.items() if option not in words for word in (option, value)]
    _run([ROOT / "bin/plan", "--quiet", *fixed, *words, data, run], run.parent)
    return json.loads((run / "plan.json").read_text())


def train(run: Path, index: int = 0, limit: str | None = None, words: Sequence[str] = ()) -> Trained:
    """`train-instance` with the options `words`, under a hard kernel limit (as 2G or 1500M) where one is given."""
    command: list[str | Path] = [ROOT / "bin/train-instance", "--quiet", *words, run, str(index)]
    start = time.perf_counter()
    said = _run(command if limit is None else [MEMLIMIT, limit, *command], run.parent)
    seconds = time.perf_counter() - start
    usage = json.loads((run / f"instances/{index:02d}/resource_usage.json").read_text())
    return Trained(usage, _accounts(said), seconds)


@dataclass(frozen=True)
class Limited:
    """seconds : wall clock. kernel : what the limit's own accounts say (peak_anon, oom_kills, …)."""

    seconds: float
    kernel: dict[str, int]


def run_limited(limit: str, place: Path, name: str, *words: str | Path) -> Limited:
    """One of our commands, quiet, under a hard kernel limit (as 1G)."""
    start = time.perf_counter()
    said = _run([MEMLIMIT, limit, ROOT / "bin" / name, "--quiet", *words], place)
    return Limited(time.perf_counter() - start, _accounts(said))


@dataclass(frozen=True)
class Measured:
    """seconds : CPU of the command and what it waited for.

    peak_bytes : largest resident memory of a process among these, by the kernel (ru_maxrss).
    """

    seconds: float
    peak_bytes: int


# A process keeps the peak of the one that started it (the kernel counts the memory before exec too), and a benchmark is
# larger than what it measures: a small one in between starts it and tells of its children only.
_TELL = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(code, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)"
)


def run_measured(name: str, *words: str | Path) -> Measured:
    """One of our commands, quiet."""
    command = [sys.executable, "-I", "-c", _TELL, ROOT / "bin" / name, "--quiet", *words]
    code, seconds, peak = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if code != "0":
        raise SystemExit(f"{name} {' '.join(map(str, words))} ended with {code}")
    return Measured(float(seconds), int(peak))


def _accounts(said: str) -> dict[str, int]:
    """What the limit's script wrote at its end; empty without one."""
    line = next((x for x in said.splitlines() if x.startswith("memlimit: limit")), "")
    return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)}


def _run(command: list[str | Path], scratch: Path) -> str:
    """What it wrote to stderr; an error names the command and shows that."""
    env = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return done.stderr
