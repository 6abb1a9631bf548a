"""The bytes per cell of a quantised matrix, as measured (benchmarks/memory_law.py), and what follows from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from metabatch.data.batches import RowCount, whole_files
from metabatch.data.layout import cell_bytes
from metabatch.data.missing import Wish
from metabatch.data.roles import Candidate
from metabatch.data.statistics import measure_features
from metabatch.rundir.manifests import FeatureSet


@pytest.mark.parametrize(
    ("densities", "measured"),
    # 300 features, 131,072 rows; in the last case every second feature has no missing value
    [([1.0], 2.165), ([0.9], 4.76), ([0.5], 3.165), ([0.3], 2.365), ([0.15], 2.01), ([0.15, 1.0], 7.59)],
)
def test_bytes_per_cell_are_within_a_twentieth_of_the_measured(densities: list[float], measured: float) -> None:
    assert cell_bytes(densities, has_missing=densities != [1.0], most_bins=256) == pytest.approx(measured, rel=0.05)


def test_one_sparse_column_makes_the_dense_ones_dear() -> None:
    assert cell_bytes([0.1] + [1.0] * 9, has_missing=True, most_bins=256) > 2 * cell_bytes(
        [0.3] + [1.0] * 9, has_missing=True, most_bins=256
    )


def measured(tmp_path: Path, columns: dict[str, np.ndarray]) -> FeatureSet:
    file = tmp_path / "t.parquet"
    n = len(next(iter(columns.values())))
    pl.DataFrame({"gene_id": ["A"] * n, **columns}).write_parquet(file)
    candidates = [
        Candidate(k, "float32" if v.dtype.kind == "f" else "uint8", "context", ()) for k, v in columns.items()
    ]
    return measure_features(whole_files([file]), n, candidates, [], "gene_id", ["A"], RowCount(), 256, 1, Wish())[0]


def test_zeros_are_left_out_where_the_matrix_gains_and_only_of_mostly_zero_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {f"c{i}": rng.poisson(0.15, 5000).astype(np.uint8) for i in range(9)}
    found = measured(tmp_path, counts | {"x": rng.normal(size=5000)})
    assert {f.name for f in found.features if f.missing == "zero-as-missing"} == set(counts)
    assert found.densities[-1] == 1.0
    assert found.densities[0] == pytest.approx((counts["c0"] != 0).mean())


def test_zeros_stay_where_leaving_them_out_would_cost_more(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = {f"x{i}": rng.normal(size=500) for i in range(9)}
    found = measured(tmp_path, dense | {"c": rng.poisson(0.1, 500).astype(np.uint8)})
    assert all(f.missing == "native" for f in found.features)
    assert not found.has_missing


def test_negative_values_keep_their_zeros(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {f"d{i}": rng.integers(-1, 2, 500) * (rng.random(500) < 0.2) * 1.0 for i in range(6)}
    assert all(f.missing == "native" for f in measured(tmp_path, values).features)


def test_constant_and_empty_columns_are_left_out_with_the_reason(tmp_path: Path) -> None:
    ones, gaps = np.ones(50), np.full(50, np.nan)
    found = measured(
        tmp_path, {"one": ones, "gap": gaps, "x": np.arange(50.0), "half": np.where(np.arange(50) % 2, 1.0, np.nan)}
    )
    assert [f.name for f in found.features] == ["x", "half"]
    assert {e.name: e.reason for e in found.excluded} == {"one": "constant (1)", "gap": "no value in any row"}
