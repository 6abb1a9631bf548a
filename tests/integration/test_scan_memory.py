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


def peak_of(*words: str | Path) -> int:
    """Peak resident memory of one executable, bytes."""
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    process = subprocess.Popen(
        [ROOT / "bin" / words[0], *words[1:]], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss << 10


@pytest.mark.parametrize("row_group", [16_384, 10_000_000], ids=["usual row groups", "one huge row group"])
def test_four_times_the_rows_need_the_same_memory(tmp_path: Path, row_group: int) -> None:
    small = write_rows(tmp_path / "small", 500, row_group)
    large = write_rows(tmp_path / "large", 2000, row_group)
    decoded = GENES * 2000 * FEATURES * 4
    allowed = 20 << 20
    if row_group > GENES * 2000:
        # Compressed column chunks of the one row group are held; random floats do not compress.
        allowed += (large / "part-0.parquet").stat().st_size - (small / "part-0.parquet").stat().st_size
    grown = peak_of("plan", large, tmp_path / "run-l") - peak_of("plan", small, tmp_path / "run-s")
    assert grown <= allowed
    if row_group == 16_384:
        assert allowed < decoded / 2
    narrow = peak_of("inspect-dataset", large) - peak_of("inspect-dataset", small)
    assert narrow <= 30 << 20
