"""Peak memory of `plan` and `inspect-dataset` does not grow with the number of rows (kernel's ru_maxrss)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import ROOT

GENES, FEATURES = 200, 40


def write_rows(folder: Path, per_gene: int, row_group: int) -> Path:
    rng = np.random.default_rng(0)
    n = GENES * per_gene
    within = np.tile(np.arange(per_gene), GENES)
    frame = pl.DataFrame(
        {
            "gene_id": np.repeat([f"G{i:04d}" for i in range(GENES)], per_gene),
            "position": within.astype(np.int32),
            "splice_type": np.array(["neither", "donor", "acceptor"])[np.where(within < 20, within % 2 + 1, 0)],
            **{f"x{j}": rng.random(n, dtype=np.float32) for j in range(FEATURES)},
        }
    )
    folder.mkdir()
    frame.write_parquet(folder / "part-0.parquet", row_group_size=row_group)
    return folder


# A process keeps the peak of the one that started it: the kernel counts the memory before exec too, and that of pytest
# hides what is measured. A small process in between starts it and tells of its children only.
TELL = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=2);"
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def peak_of(*words: str | Path) -> int:
    """Peak resident memory of one executable, bytes."""
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    command = [sys.executable, "-I", "-c", TELL, ROOT / "bin" / words[0], *words[1:]]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    code, peak = said.stdout.split()
    assert code == "0", said.stderr
    return int(peak) << 10


def test_the_peak_is_that_of_the_command_alone(tmp_path: Path) -> None:
    """Whatever this process holds."""
    data = write_rows(tmp_path / "data", 20, 16_384)
    before = peak_of("inspect-dataset", data)
    held = np.ones(1 << 26)  # 512 MiB
    after = peak_of("inspect-dataset", data)
    assert held.sum() == 1 << 26
    assert abs(after - before) < 40 << 20


@pytest.mark.parametrize("row_group", [16_384, 10_000_000], ids=["usual row groups", "one huge row group"])
def test_four_times_the_rows_need_the_same_memory(tmp_path: Path, row_group: int) -> None:
    # The probe's samples grow with small tables; from 200,000 rows on they are as large as they get.
    small = write_rows(tmp_path / "small", 1000, row_group)
    large = write_rows(tmp_path / "large", 4000, row_group)
    decoded = GENES * 4000 * FEATURES * 4
    allowed = (20 << 20) + 24 * GENES * 3000  # narrow columns of all rows: gene, label, position
    if row_group > GENES * 4000:
        # Compressed column chunks of the one row group are held; random floats do not compress.
        allowed += (large / "part-0.parquet").stat().st_size - (small / "part-0.parquet").stat().st_size
    grown = peak_of("plan", large, tmp_path / "run-l") - peak_of("plan", small, tmp_path / "run-s")
    assert grown <= allowed
    if row_group == 16_384:
        assert allowed < decoded / 2
    narrow = peak_of("inspect-dataset", large) - peak_of("inspect-dataset", small)
    # It looks at features for leaks, so that of a huge row group it holds as much as `plan`.
    assert narrow <= (30 << 20 if row_group == 16_384 else allowed)
