"""Peak memory and time as the table grows: 500 to 9,280 genes x strategies, few trees, no folds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from runs import NO_FOLDS, make_plan, train

SIZES = (500, 1000, 2000, 4000, 9280)
STRATEGIES = ("single", "external", "multi-instance")
TREES = 3


def growth_table(tables: dict[int, Path], place: Path) -> Iterator[str]:
    """Lines of a table.

    Parameters
    ----------
    tables : dict
        Genes -> folder of a table of the reference shape.
    """
    yield (f"{TREES} trees a class, no folds, instance 0. Measured: VmHWM, anonymous memory for external.\n")
    yield "| genes | strategy | rows of the instance | predicted MiB | measured MiB | matrix s | s per tree |"
    yield "|---|---|---|---|---|---|---|"
    for genes, data in tables.items():
        for strategy in STRATEGIES:
            run = place / f"growth-{genes}-{strategy}"
            words = (*NO_FOLDS, "--strategy", strategy, "--n-estimators", str(TREES))
            plan = make_plan(data, run, *words, "--max-memory-per-instance-gb", "15")
            done = train(run)
            trees = TREES * len(plan["options"]["classes"])
            yield (
                f"| {genes:,} | {strategy} | {plan['instances'][0]['rows']:,} "
                f"| {done.usage['predicted_peak_bytes'] >> 20:,} | {done.usage['measured_peak_bytes'] >> 20:,} "
                f"| {done.phase('matrix'):.0f} | {done.phase('final-models') / trees:.2f} |"
            )
            shutil.rmtree(run)
