"""One model over 1, 2 and 4 workers of this machine, beside a process alone: trees, memory, time."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from runs import NO_FOLDS, ROOT, make_plan

sys.path.insert(0, str(ROOT))
from metabatch.resources.law import MemoryLaw

DEMO = ROOT / "examples/hg19-demo"
WORKERS = (1, 2, 4)
# 37 genes: a third of them, or the difference would be that of three genes.
ON_DEMO = ("--holdout-fraction", "0.35", "--n-estimators", "200")
AT_SIZE = ("--holdout-fraction", "0.1", "--n-estimators", "40", "--learning-rate", "0.3", *NO_FOLDS)


@dataclass(frozen=True)
class _Trained:
    """seconds, cpu : of the command and all that it started. leader : VmHWM of the process that led, bytes."""

    seconds: float
    cpu: float
    leader: int
    usage: dict[str, Any]


def distributed_lines(table: Path, place: Path) -> Iterator[str]:
    """Two tables; `table`: in the reference shape."""
    yield (
        "All workers on the two cores of this machine, started by train-instance: the times show what the exchange and "
        "the sharing cost, not what more machines gain. Peaks are VmHWM of the largest worker until its trees were "
        "grown, held against matrix / workers + what the process takes without a matrix (both of the plan's law); and "
        "VmHWM of the process that leads. AP on the held-out genes, less that of `single`.\n"
    )
    for title, data, words in (("the demo, 200 trees, 5 folds", DEMO, ON_DEMO), (
        "2,000 genes in the reference shape, 40 trees, no folds", table, AT_SIZE
    )):  # fmt: skip
        yield f"### {title}\n"
        yield (
            "| workers | matrix / workers + baseline, MiB | worker, MiB | of it | leads, MiB | s | CPU s | donor AP "
            "| acceptor AP |"
        )
        yield "|---" * 9 + "|"
        yield from _table(data, words, place)
        yield ""


def _table(data: Path, words: tuple[str, ...], place: Path) -> Iterator[str]:
    alone: dict[str, float] = {}
    for workers in (0, *WORKERS):
        run = place / f"workers-{workers}"
        strategy = ("--strategy", "distributed", "--workers", str(workers)) if workers else ("--strategy", "single")
        plan = make_plan(data, run, *strategy, *words)
        done = _train(run)
        found = _judged(run)
        ap = {c: found["meta"][c]["ap"] for c in ("donor", "acceptor")}
        alone = alone or ap
        law = MemoryLaw(**plan["memory_law"])
        expected = law.matrix_bytes(plan["instances"][0]["rows"]) / max(1, workers) + law.fixed_bytes
        peak = max(done.usage["worker_peak_bytes"], default=done.usage["peak_rss_bytes"])
        shown = [f"{ap[c]:.4f} ({ap[c] - alone[c]:+.4f})" if workers else f"{ap[c]:.4f}" for c in ap]
        yield (
            f"| {workers or 'alone'} | {expected / 2**20:,.0f} | {peak / 2**20:,.0f} | {peak / expected:.2f} "
            f"| {f'{done.leader / 2**20:,.0f}' if workers else '-'} | {done.seconds:.0f} | {done.cpu:.0f} | {shown[0]} "
            f"| {shown[1]} |"
        )
        shutil.rmtree(run)


def _train(run: Path) -> _Trained:
    before, begun = _cpu(), time.perf_counter()
    with subprocess.Popen([ROOT / "bin/train-instance", "--quiet", run, "0"], stdout=subprocess.DEVNULL) as process:
        leader = [0]
        watching = threading.Thread(target=_watch, args=(process.pid, leader))
        watching.start()
        if process.wait():
            raise RuntimeError(f"train-instance ended with {process.returncode}")
        watching.join()
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    return _Trained(time.perf_counter() - begun, _cpu() - before, leader[0], usage)


def _cpu() -> float:
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


def _watch(pid: int, found: list[int]) -> None:
    """VmHWM of the leading process: the child of the command that has no place in the team."""
    while psutil.pid_exists(pid):
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            for child in psutil.Process(pid).children():
                if "metabatch.training.child" in child.cmdline():
                    text = Path(f"/proc/{child.pid}/status").read_text()
                    line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
                    found[0] = max(found[0], int(line.split()[1]) << 10)
        time.sleep(0.2)


def _judged(run: Path) -> dict[str, Any]:
    for name in ("consolidate", "evaluate"):
        subprocess.run([ROOT / "bin" / name, "--quiet", run], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "evaluation/metrics.json").read_text())
