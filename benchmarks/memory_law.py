"""Prediction against measurement: the memory law over shapes, densities, missingness and strategies.

    PYTHONPATH=. python benchmarks/memory_law.py [--only WORD]        (all of them: benchmarks/compare.py)

Each case plans a table, trains one instance with few trees, and prints what `plan` predicted, what the kernel measured
(VmHWM of the training process; its anonymous memory for external) and the error.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from reference_table import make_table
from runs import NO_FOLDS, ROOT, make_plan, train

ROWS_PER_GENE = 400
FOLDS = ("--n-folds", "5")
NATIVE = ("--missing-policy", "native")


@dataclass(frozen=True)
class Case:
    """`table`: demo, reference (of that shape), counts or floats; zeros and missing: parts of the cells."""

    table: str
    strategy: str
    genes: int = 0
    features: int = 0
    zeros: float = 0.0
    missing: float = 0.0
    words: tuple[str, ...] = FOLDS
    row_group: int = 16_384

    def text(self) -> str:
        options = " ".join(self.words) + (f", row groups of {self.row_group:,}" if self.row_group != 16_384 else "")
        return (f"| {self.table} | {self.genes or ''} | {self.features or ''} | {self.zeros:g} | {self.missing:g} "
                f"| {self.strategy} | {options} ")  # fmt: skip


CASES = [
    Case("demo", "single"),
    Case("demo", "external"),
    Case("counts", "single", 60, 60),
    Case("counts", "single", 500, 300),
    Case("counts", "single", 500, 300, zeros=0.8),
    Case("counts", "single", 500, 300, zeros=0.9),
    Case("counts", "external", 500, 300, zeros=0.9),
    Case("counts", "single", 500, 300, missing=0.02),
    Case("counts", "single", 500, 300, missing=0.02, words=(*FOLDS, *NATIVE)),
    Case("counts", "single", 500, 300, missing=0.4, words=(*FOLDS, *NATIVE)),
    Case("floats", "single", 150, 400),
    Case("floats", "single", 150, 400, words=(*FOLDS, "--max-bin", "1024")),
    Case("floats", "single", 150, 400, missing=0.1),
    Case("floats", "single", 150, 400, missing=0.1, words=(*FOLDS, *NATIVE)),
    Case("floats", "external", 150, 400, missing=0.1, words=(*FOLDS, *NATIVE)),
    Case("floats", "external", 400, 200, row_group=65_536),
    Case("counts", "single", 5000, 4, words=FOLDS),
    Case("counts", "external", 5000, 4, words=FOLDS),
    Case("counts", "external", 5000, 20, words=NO_FOLDS),
    Case("counts", "external", 500, 300, zeros=0.9, row_group=1_000),
    Case("reference", "single", 300, 1167),
    Case("reference", "single", 1000, 1167),
    Case("reference", "single", 1000, 1167, words=(*NO_FOLDS, "--max-depth", "9")),
    Case("reference", "multi-instance", 1000, 1167),
    Case("reference", "external", 1000, 1167),
]


def write_case(folder: Path, case: Case) -> Path:
    """Genes of 400 rows; the given part of the cells is 0, and in one feature in four null."""
    if case.table == "demo":
        return ROOT / "examples" / "hg19-demo"
    if case.table == "reference":
        make_table(folder, case.genes, case.features, 2, 1)
        return folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    per_shard = max(1, case.genes // 4)
    for shard, first in enumerate(range(0, case.genes, per_shard)):
        genes = min(per_shard, case.genes - first)
        n = genes * ROWS_PER_GENE
        within = np.tile(np.arange(ROWS_PER_GENE), genes)
        data: dict[str, object] = {
            "gene_id": np.repeat([f"G{first + i:05d}" for i in range(genes)], ROWS_PER_GENE),
            "splice_type": np.array(["neither", "donor", "acceptor"])[np.where(within < 40, within % 2 + 1, 0)],
        }
        for j in range(case.features):
            if case.table == "floats":
                values = rng.standard_normal(n, dtype=np.float32)
            else:
                values = rng.integers(1, 200, n).astype(np.uint8)
            if case.zeros:
                values[rng.random(n) < case.zeros] = 0
            column = pl.Series(values)
            if case.missing and j % 4 == 0:
                gap = pl.Series([None], dtype=column.dtype).new_from_index(0, n)
                column = column.zip_with(pl.Series(rng.random(n) >= case.missing), gap)
            data[f"f{j}"] = column
        pl.DataFrame(data).write_parquet(folder / f"s{shard}.parquet", row_group_size=case.row_group)
    return folder


def law_table(only: str = "") -> Iterator[str]:
    """Lines of a table of the cases in whose description `only` occurs, and what the errors come to."""
    yield (
        "Generated tables have 400 rows a gene and row groups of 16,384 rows unless said; four trees a class. Marked "
        "with ! is an error beyond both 10 % and 100 MB, or more than 5 % too low.\n"
    )
    yield "| table | genes | features | zeros | missing | strategy | options | predicted MiB | measured MiB | error |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    errors = []
    for case in CASES:
        if only not in case.text():
            continue
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            data = write_case(place / "data", case)
            make_plan(data, place / "run", "--strategy", case.strategy, "--n-estimators", "4", *case.words)
            usage = train(place / "run").usage
        predicted, measured = usage["predicted_peak_bytes"], usage["measured_peak_bytes"]
        error = 100 * (predicted / measured - 1)
        errors.append(error)
        broken = error < -5 or (abs(error) > 10 and abs(predicted - measured) > 100e6)
        yield f"{case.text()}| {predicted >> 20} | {measured >> 20} | {error:+.0f} %{' !' if broken else ''} |"
    yield f"\n{len(errors)} cases, errors from {min(errors):+.0f} % to {max(errors):+.0f} %."


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    for line in law_table(parser.parse_args().only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
