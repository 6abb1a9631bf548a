"""What the analyses of an instance cost: their part of its training time, one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from runs import make_plan, train

TREES = 200
_TRAINING = ("rows", "matrix", "cross-validation", "final-models", "calibration", "write", "metrics")


def analyses_table(data: Path, place: Path) -> Iterator[str]:
    """Lines of a table: all analyses of one instance at their default sampling, and all of them together."""
    run = place / "analyses"
    make_plan(data, run, "--strategy", "single", "--n-estimators", str(TREES), "--analyses", "all")
    done = train(run)
    training = sum(done.phase(name) for name in _TRAINING)
    grown, made = done.phase("ablation"), done.phase("analysis")
    sections = json.loads((run / "instances/00/analysis.json").read_text())["analyses"]
    share = (grown + made) / training
    yield (
        f"{done.usage['phases'][0]['rows_asked']:,} rows, 5 folds, {TREES} trees a class without early stopping: "
        f"training {training:.0f} s, all analyses {grown + made:.0f} s, {share:.0%} of it.\n"
    )
    yield "| analysis | seconds | of the training time | |"
    yield "|---|---|---|---|"
    for section in sections:
        seconds = section["seconds"] + (grown if section["name"] == "ablation" else 0)
        yield f"| {section['name']} | {seconds:.1f} | {100 * seconds / training:.1f} % | {section['status']} |"
    shutil.rmtree(run)
