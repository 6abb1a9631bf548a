"""Cuts are decided once, by the plan: a bin for every value where there are few, XGBoost's own sketch elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from metabatch.data.batches import RowCount, whole_files
from metabatch.data.cuts import cut_table, cuts_of, reference_rows, sketch_cuts
from metabatch.data.missing import Wish
from metabatch.data.roles import Candidate
from metabatch.data.statistics import measure_features
from metabatch.training.matrix import Batches, blank_batches, decoded_passes, shape_passes


def table(n: int = 6000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack(
        [rng.integers(0, 5, n), rng.normal(size=n), rng.gamma(0.1, size=n), rng.integers(-3, 300, n)], axis=1
    ).astype(np.float32)


@pytest.mark.parametrize("max_bin", [4, 64, 256])
def test_a_matrix_by_reference_has_exactly_the_planned_cuts(max_bin: int) -> None:
    values = table()
    cuts = sketch_cuts(list(values.T), max_bin, 1)
    direct = xgb.QuantileDMatrix(values, max_bin=max_bin)
    again = xgb.QuantileDMatrix(values, max_bin=max_bin, ref=xgb.QuantileDMatrix(reference_rows(cuts), max_bin=max_bin))
    for matrix in (direct, again):
        pointers, found = matrix.get_quantile_cut()
        for column, expected in enumerate(cuts):
            inner = found[pointers[column] + 1 : pointers[column + 1] - 1]
            assert np.array_equal(inner, expected[1:])
            assert len(expected) <= max_bin


def test_cuts_survive_the_file(tmp_path: Path) -> None:
    cuts = [np.array([0.0, 1.5, 3.0], np.float32), np.array([7.0], np.float32)]
    cut_table(["a", "b"], cuts).write_parquet(tmp_path / "cuts.parquet")
    again = cuts_of(pl.read_parquet(tmp_path / "cuts.parquet"))
    assert all(np.array_equal(a, b) for a, b in zip(cuts, again, strict=True))


def test_counts_get_a_bin_a_value_and_only_training_genes_give_the_sample(tmp_path: Path) -> None:
    n = 4000
    rng = np.random.default_rng(1)
    held = np.arange(n) % 2 == 0
    frame = pl.DataFrame(
        {
            "gene_id": np.where(held, "H", "T"),
            "count": rng.choice([0, 3, 200], n).astype(np.uint8),
            "wide": rng.integers(0, 100_000, n).astype(np.int32),
            "score": np.where(held, 100.0, rng.random(n)).astype(np.float32),
        }
    )
    file = tmp_path / "t.parquet"
    frame.write_parquet(file, row_group_size=700)
    dtypes = {"count": "uint8", "wide": "int32", "score": "float32"}
    candidates = [Candidate(k, v, "context", ()) for k, v in dtypes.items()]  # type: ignore[arg-type]
    features, cuts, _ = measure_features(
        whole_files([file]), n, candidates, [], "gene_id", ["T"], RowCount(), 16, 1, Wish()
    )
    by_name = dict(zip([f.name for f in features.features], cuts, strict=True))
    assert by_name["count"].tolist() == [0, 3, 200]
    assert len(by_name["wide"]) == 16
    inner = by_name["score"][:-1]
    assert inner.max() <= 1  # the held-out genes' 100 shows as the end of the range only
    assert features.bins == tuple(len(c) for c in cuts)


def test_a_feature_that_uses_every_value_of_its_type_keeps_its_bins(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    n = 20_000
    every = rng.permutation(np.arange(n) % 256).astype(np.uint8)
    gaps = pl.Series([None], dtype=pl.UInt8).new_from_index(0, n)
    some_missing = pl.Series(every).zip_with(pl.Series(rng.random(n) > 0.01), gaps)
    frame = pl.DataFrame({"gene_id": ["T"] * n, "full": every, "gaps": some_missing, "rest": rng.random(n)})
    file = tmp_path / "t.parquet"
    frame.write_parquet(file)
    dtypes = {"full": "uint8", "gaps": "uint8", "rest": "float32"}
    candidates = [Candidate(k, v, "context", ()) for k, v in dtypes.items()]  # type: ignore[arg-type]
    features, cuts, _ = measure_features(
        whole_files([file]), n, candidates, [], "gene_id", ["T"], RowCount(), 256, 1, Wish()
    )
    full, with_gaps, _ = cuts
    assert full.tolist() == list(range(256))
    assert features.features[1].missing == "sentinel"
    assert with_gaps[0] == features.features[1].sentinel == -1
    assert len(with_gaps) >= 250
    few, _, _ = measure_features(whole_files([file]), n, candidates, [], "gene_id", ["T"], RowCount(), 16, 1, Wish())[1]
    assert 14 <= len(few) <= 16
    matrix = xgb.QuantileDMatrix(reference_rows(cuts), max_bin=256)
    pointers, _ = matrix.get_quantile_cut()
    assert np.diff(pointers).tolist() == [len(c) + 1 for c in cuts]  # one more stands for the end


@pytest.mark.parametrize("missing", [False, True])
def test_blank_passes_build_the_same_matrix(missing: bool) -> None:
    """Where XGBoost looks at shapes only, blank rows stand for the data: the trees are the same."""
    values = table(600)
    if missing:
        values[np.random.default_rng(2).random(values.shape) < 0.2] = np.nan
    parts = [pl.DataFrame(p, schema=list("abcd")).to_arrow() for p in np.array_split(values, 4)]
    reference = xgb.QuantileDMatrix(reference_rows(sketch_cuts([c[~np.isnan(c)] for c in values.T], 64, 1)))
    dumps = []
    for passes in (frozenset[int](), shape_passes(external=False, missing=missing)):
        read = [0]

        def make(read: list[int] = read) -> object:
            read[0] += 1
            return iter(parts)

        source = Batches(
            list("abcd"),
            make,
            lambda: blank_batches([p.num_rows for p in parts], list("abcd"), missing=missing),
            passes,
        )  # type: ignore[arg-type]
        matrix = xgb.QuantileDMatrix(source, missing=np.nan, ref=reference)
        matrix.set_info(label=np.nan_to_num(values[:, 1]) > 0)
        dumps.append(xgb.train({"max_depth": 4}, matrix, 5).get_dump(with_stats=True))
    assert dumps[0] == dumps[1]
    assert read[0] == decoded_passes(external=False, missing=missing) == (2 if missing else 1)
