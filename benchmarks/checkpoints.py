"""What keeping boosters costs: the part of the training time that goes into writing checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from runs import ROOT, make_plan, train

SECONDS = ("30", "0")
TREES = {"500 genes of the reference shape": 20, "demo": 200}


def checkpoints_table(data: Path, place: Path) -> Iterator[str]:
    """Lines of a table: by default (every 30 s at most), and after every round."""
    yield "| table | strategy | --checkpoint-seconds | trees a class | boosting s | checkpoints s | share |"
    yield "|---|---|---|---|---|---|---|"
    tables = dict(zip(TREES, (data, ROOT / "examples/hg19-demo"), strict=True))
    for name, table in tables.items():
        for strategy in ("single", "external"):
            for seconds in SECONDS:
                run = place / "checkpoints"
                make_plan(table, run, "--strategy", strategy, "--n-folds", "5", "--n-estimators", str(TREES[name]))
                done = train(run, words=("--checkpoint-seconds", seconds))
                boosting = done.phase("cross-validation") + done.phase("final-models")
                kept = done.usage["checkpoint_seconds"]
                yield (
                    f"| {name} | {strategy} | {seconds} | {TREES[name]} | {boosting:.1f} | {kept:.2f} "
                    f"| {100 * kept / boosting:.1f} % |"
                )
                shutil.rmtree(run)
