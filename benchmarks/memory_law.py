"""Prediction against measurement: the memory law over shapes, densities and strategies.

    PYTHONPATH=. python benchmarks/memory_law.py [--quick]

Each case generates a table, plans it, trains one instance with few trees, and prints the predicted peak, the
kernel's peak (VmHWM of the training process) and the error. Where metabatch/planning/memory.py has its constants from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
ROW_GROUP = 16_384


@dataclass(frozen=True)
class Case:
    genes: int
    features: int
    zeros: float
    missing: float
    strategy: str


CASES = [
    Case(250, 300, 0.0, 0.0, "single"),
    Case(500, 300, 0.0, 0.0, "single"),
    Case(500, 300, 0.8, 0.0, "single"),
    Case(500, 300, 0.9, 0.0, "single"),
    Case(500, 300, 0.0, 0.02, "single"),
    Case(500, 300, 0.0, 0.4, "single"),
    Case(500, 300, 0.0, 0.0, "external"),
    Case(500, 300, 0.8, 0.0, "external"),
    Case(250, 1100, 0.0, 0.0, "single"),
    Case(250, 1100, 0.8, 0.0, "single"),
    Case(250, 1100, 0.8, 0.0, "external"),
    Case(60, 60, 0.0, 0.0, "single"),
]


def write_case(folder: Path, case: Case) -> None:
    """Genes of 400 rows; the given part of the cells is 0, and in one feature in four null."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    per_shard = max(1, case.genes // 4)
    for shard, first in enumerate(range(0, case.genes, per_shard)):
        genes = min(per_shard, case.genes - first)
        n = genes * 400
        within = np.tile(np.arange(400), genes)
        data: dict[str, object] = {
            "gene_id": np.repeat([f"G{first + i:05d}" for i in range(genes)], 400),
            "splice_type": np.array(["neither", "donor", "acceptor"])[np.where(within < 40, within % 2 + 1, 0)],
        }
        for j in range(case.features):
            values = rng.integers(1, 200, n).astype(np.uint8)
            if case.zeros:
                values[rng.random(n) < case.zeros] = 0
            column = pl.Series(values)
            if case.missing and j % 4 == 0:
                column = column.zip_with(
                    pl.Series(rng.random(n) >= case.missing), pl.Series([None] * n, dtype=pl.UInt8)
                )
            data[f"f{j}"] = column
        pl.DataFrame(data).write_parquet(folder / f"s{shard}.parquet", row_group_size=ROW_GROUP)


def measure(case: Case, place: Path) -> tuple[int, int]:
    """Predicted and measured peak, bytes."""
    write_case(place / "data", case)
    env = os.environ | {"METABATCH_PYTHON": sys.executable, "TMPDIR": str(place)}
    words = ["--strategy", case.strategy, "--holdout-fraction", "0", "--n-folds", "2", "--n-estimators", "4"]
    run = place / "run"
    for command in (
        ["plan", "--quiet", *words, "--early-stopping-patience", "0", str(place / "data"), str(run)],
        ["train-instance", "--quiet", str(run), "0"],
    ):
        subprocess.run([ROOT / "bin" / command[0], *command[1:]], env=env, check=True, stdout=subprocess.DEVNULL)
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    return usage["predicted_peak_bytes"], usage["peak_rss_bytes"]


def main() -> None:
    """Run the cases and print a table."""
    print("| genes | features | zeros | missing | strategy | predicted MiB | measured MiB | error |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES[:4] if "--quick" in sys.argv else CASES:
        with tempfile.TemporaryDirectory() as place:
            predicted, measured = measure(case, Path(place))
        print(
            f"| {case.genes} | {case.features} | {case.zeros:g} | {case.missing:g} | {case.strategy} "
            f"| {predicted >> 20} | {measured >> 20} | {100 * (predicted / measured - 1):+.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
