"""Which missing-value policy a table gets, and what a sentinel does to cells, cuts and splits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabatch.data.batches import RowCount, whole_files
from metabatch.data.missing import Seen, Wish, choose_policies, sentinel_below
from metabatch.data.preprocess import Preprocessor
from metabatch.data.roles import Candidate
from metabatch.data.statistics import measure_features
from metabatch.rundir.manifests import Feature

FULL = Seen(missing=0.0, zero=0.1, low=-2.0)


def test_a_few_missing_cells_get_a_sentinel_because_they_would_double_the_matrix() -> None:
    found = choose_policies([Seen(0.02, 0.1, -3.0), *[FULL] * 9], 256, Wish())
    assert found.policies == ("sentinel", *["native"] * 9)
    assert found.densities == (1.0,) * 10
    assert found.sentinels == (-6.0, *[None] * 9)
    assert "2.1 instead of 5.1 bytes per cell" in found.notes[0]


def test_missing_cells_stay_as_they_are_where_that_costs_little_or_is_asked_for() -> None:
    mostly_missing = [Seen(0.7, 0.1, 0.0)] * 10
    assert set(choose_policies(mostly_missing, 256, Wish()).policies) == {"native"}
    assert set(choose_policies([Seen(0.02, 0.1, 0.0)] * 10, 256, Wish(native=True)).policies) == {"native"}
    assert set(choose_policies([Seen(0.0, 0.9, 0.0)] * 10, 256, Wish(native=True)).policies) == {"native"}


COUNTS = [Seen(0.0, 0.95, 0.0)] * 85 + [FULL] * 15  # 2.1 bytes per cell with their zeros, 2.5 without


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ((math.inf,), "zero-as-missing"),
        ((2.3,), "native"),  # without the zeros it would not fit
        ((2.0, 10.0), "zero-as-missing"),  # all genes fit in no way, an instance does
        ((2.3, 10.0), "native"),  # all genes fit with the zeros only
        ((1.0,), "native"),
    ],
)
def test_zeros_are_left_out_for_speed_where_the_budget_has_room(rooms: tuple[float, ...], expected: str) -> None:
    found = choose_policies(COUNTS, 256, Wish(rooms=rooms))
    assert set(found.policies) == {"native", expected}
    assert any("bytes per cell" in note for note in found.notes)


def test_no_sentinel_where_there_is_no_room_below_the_values() -> None:
    found = choose_policies([Seen(0.02, 0.1, -3e38), *[FULL] * 9], 256, Wish())
    assert set(found.policies) == {"native"}


@given(st.floats(-1e38, 1e38))
def test_a_sentinel_is_below_every_value_and_a_float32(low: float) -> None:
    sentinel = sentinel_below(float(np.float32(low)))
    assert np.isfinite(sentinel)
    assert sentinel == np.float32(sentinel) < np.float32(low)


@pytest.mark.parametrize("array", [pa.array([5.0, None, float("nan"), 7.0]), pa.array([5, None, None, 7], pa.int16())])
def test_null_and_nan_become_the_sentinel_and_so_does_an_absent_column(array: pa.Array) -> None:
    prepare = Preprocessor(
        [Feature(name="x", dtype="float32", missing="sentinel", if_absent="null", group="context", sentinel=-4.0)]
    )
    batch = prepare.transform(pa.table({"x": array}), where="test")
    assert batch.column("x").to_pylist() == [5.0, -4.0, -4.0, 7.0]
    assert batch.column("x").null_count == 0
    assert prepare.transform(pa.table({"y": [1, 2]}), where="test").column("x").to_pylist() == [-4.0, -4.0]
    empty = pa.table({"x": pa.nulls(2)})
    assert prepare.transform(empty, where="test").column("x").to_pylist() == [-4.0, -4.0]


def test_the_sentinel_has_a_bin_of_its_own_and_no_feature_more_bins_than_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = pl.Series(rng.normal(size=4000).astype(np.float32))
    gaps = pl.Series([None], dtype=pl.Float32).new_from_index(0, 4000)
    frame = pl.DataFrame({"gene_id": ["A"] * 4000, "x": values.zip_with(pl.Series(rng.random(4000) > 0.05), gaps)})
    frame.write_parquet(tmp_path / "t.parquet")
    features, cuts, _ = measure_features(
        whole_files([tmp_path / "t.parquet"]), 4000, [Candidate("x", "float32", "context", ())], [], "gene_id", ["A"],
        RowCount(), 16, 1, Wish(),
    )  # fmt: skip
    (feature,) = features.features
    assert feature.missing == "sentinel"
    assert not features.has_missing
    assert cuts[0][0] == feature.sentinel
    smallest = frame["x"].drop_nulls().min()
    assert cuts[0][0] < cuts[0][1] < smallest  # a value a little below all known ones is not missing
    assert len(cuts[0]) <= 16
