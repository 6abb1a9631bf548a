"""Linear models out of core: the reference table under a hard 1 GiB; and beside trees from disk, on 1,500 genes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runs import ROOT, Trained, make_plan, train

LIMIT, BUDGET = "1G", "0.95"
LINES = ("--strategy", "incremental", "--epochs", "3")
TREES = ("--strategy", "external", "--n-estimators", "60")
_SHARED = ("--holdout-fraction", "0.1", "--n-folds", "2")


def incremental_lines(whole: Path, some: Path, place: Path) -> Iterator[str]:
    """Two tables.

    Parameters
    ----------
    whole, some : Path
        The reference table, and one of 1,500 genes.
    """
    yield (
        f"2 folds, a tenth of the genes held out, at most 3 epochs; {LIMIT} is the kernel's limit for all processes "
        "together. Peaks in MiB: anonymous memory of all under the limit; VmHWM of the training process.\n"
    )
    yield "| genes | rows | batch | predicted | anonymous | VmHWM | s | oom kills | donor AP base, lines | acceptor |"
    yield "|---" * 10 + "|"
    run = place / "whole"
    plan = make_plan(whole, run, *LINES, *_SHARED, "--max-memory-per-instance-gb", BUDGET)
    done = train(run, limit=LIMIT)
    found = _judged(run)
    yield _whole(plan, done, found)
    shutil.rmtree(run)
    yield "\n1,500 genes, no limit:\n"
    yield "| run | predicted MiB | measured MiB | training s | CPU s | donor AP | acceptor AP |"
    yield "|---" * 7 + "|"
    runs: dict[str, Path] = {}
    for name, words in (("trees from disk, 60 a class", TREES), ("linear models", LINES)):
        run = place / name
        plan = make_plan(some, run, *words, *_SHARED)
        done = train(run)
        found = _judged(run)
        if not runs:
            yield f"| base model | | | | | {_ap(found['base']['donor'])} | {_ap(found['base']['acceptor'])} |"
        cpu = sum(p["cpu_seconds"] for p in done.usage["phases"])
        yield (
            f"| {name} | {done.usage['predicted_peak_bytes'] >> 20:,} | {done.usage['measured_peak_bytes'] >> 20:,} "
            f"| {done.seconds:.0f} | {cpu:.0f} | {_ap(found['meta']['donor'])} | {_ap(found['meta']['acceptor'])} |"
        )
        runs[name] = run
    for run in runs.values():
        shutil.rmtree(run)


def _judged(run: Path) -> dict[str, Any]:
    for name in ("consolidate", "evaluate"):
        subprocess.run([ROOT / "bin" / name, "--quiet", run], check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "evaluation/metrics.json").read_text())


def _ap(metrics: dict[str, Any]) -> str:
    low, high = metrics["ci95"]["ap"]
    return f"{metrics['ap']:.3f} ({low:.3f} to {high:.3f})"


def _whole(plan: dict[str, Any], done: Trained, found: dict[str, Any]) -> str:
    aps = " | ".join(f"{_ap(found['base'][c])}, {_ap(found['meta'][c])}" for c in ("donor", "acceptor"))
    return (
        f"| {plan['instances'][0]['genes']:,} | {plan['instances'][0]['rows']:,} | {plan['options']['batch_size']:,} "
        f"| {done.usage['predicted_peak_bytes'] >> 20:,} | {done.kernel['peak_anon'] >> 20:,} "
        f"| {done.usage['peak_rss_bytes'] >> 20:,} | {done.seconds:.0f} | {done.kernel['oom_kills']} | {aps} |"
    )
