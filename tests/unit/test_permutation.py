"""Moving values between genes: what stays of a gene, and what the models lose."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.analysis.bounds import PERMUTED_ROWS
from metabatch.analysis.permutation import (
    MOST_FEATURES,
    UNMEASURED,
    UNUSED,
    block_maps,
    fewer,
    permutation_importance,
)
from metabatch.analysis.sampling import MatrixRows
from metabatch.data.matrices import as_matrix

CLASSES = ("neither", "donor")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 1000))
def test_a_gene_takes_the_values_of_one_other_gene_turned_round(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))  # rows of a gene need not lie together
    for moved in block_maps(unit, np.ones(len(unit)), 2, seed):
        partners = []
        for gene in range(len(sizes)):
            source = moved[unit == gene]
            assert len(set(unit[source])) == 1
            partners.append(unit[source[0]])
            place = np.flatnonzero(unit == partners[-1]).searchsorted(source)
            assert (np.diff(place) < 0).sum() <= 1  # one turn
            if len(source) == sizes[partners[-1]]:
                assert len(set(place)) == len(place)  # all of its values, each once
        assert sorted(partners) == list(range(len(sizes)))
        if len(sizes) > 1:
            assert all(p != gene for gene, p in enumerate(partners))


def test_rows_are_taken_as_often_as_they_stand_for() -> None:
    """A class-stratified sample must not hand the values of rare rows to a third of all others."""
    rare = np.tile(np.arange(20) < 10, 300)
    weight = np.where(rare, 1.0, 9.0)
    maps = block_maps(np.repeat(np.arange(300), 20), weight, 4, 0)
    shares = [np.average(rare[moved], weights=weight) for moved in maps]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)
    assert np.mean(rare[maps[0]][rare]) == pytest.approx(0.1, abs=0.04)


def test_neighbours_stay_alike_and_a_value_of_the_gene_stays_one() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(50), 40)
    walk = rng.normal(size=(50, 40)).cumsum(axis=1).ravel()
    moved = block_maps(unit, np.ones(len(unit)), 1, 0)[0]

    def alike(x: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(x[unit == g][:-1], x[unit == g][1:])[0, 1] for g in range(50)]))

    assert alike(walk[moved]) > 0.6
    assert abs(alike(rng.permutation(walk))) < 0.1
    of_gene = rng.normal(size=50)[unit]
    assert all(len(set(of_gene[moved][unit == g])) == 1 for g in range(50))


def test_places_that_are_the_same_in_all_genes_are_moved_too() -> None:
    """Without turning, sites at the same place of every gene would hand each other their values."""
    site = np.tile(np.arange(20) < 2, 200)
    moved = block_maps(np.repeat(np.arange(200), 20), np.ones(4000), 1, 0)[0]
    assert site[moved][site].mean() == pytest.approx(0.1, abs=0.06)


def table_of(n_units: int, seed: int, noise: int = 2) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """a tells donors; copy is a once more; gaps is a count with missing cells; noise0, noise1, … tell nothing."""
    rng = np.random.default_rng(seed)
    n = n_units * 20
    label = (rng.random(n) < 0.2).astype(np.int64)
    a = (2 * label + rng.normal(0, 0.7, n)).astype(np.float32)
    counts = rng.poisson(1, n).astype(np.uint8)
    columns = {
        "a": pa.array(a), "copy": pa.array(a), "gaps": pa.array(counts, mask=counts == 0),
        "flat": pa.array(np.zeros(n, np.uint8)),
    } | {f"noise{i}": pa.array(rng.normal(size=n).astype(np.float32)) for i in range(noise)}  # fmt: skip
    return pa.table(columns), label, np.repeat(np.arange(n_units), 20)


def trained(table: pa.Table, label: np.ndarray, rounds: int = 30) -> xgb.Booster:
    settings = {
        "objective": "binary:logistic", "max_depth": 4, "nthread": 1, "eta": 0.3, "colsample_bynode": 0.5, "seed": 1,
    }  # fmt: skip
    return xgb.train(settings, xgb.QuantileDMatrix(table, label=label), rounds)


def used_by(models: dict[str, xgb.Booster], names: list[str], groups: dict[str, str]) -> pl.DataFrame:
    gains = {c: m.get_score(importance_type="total_gain") for c, m in models.items()}
    return pl.DataFrame(
        [(c, n, groups.get(n, "others"), gains[c].get(n, 0.0), gains[c].get(n, 0.0)) for c in models for n in names],
        schema=["class", "feature", "group", "gain", "fold_gain"],
        orient="row",
    )


def run(noise: int = 2, **changes: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], MatrixRows]:
    table, label, _ = table_of(200, 0, noise)
    models = {"donor": trained(table, label)}
    held, truth, unit = table_of(150, 1, noise)
    rows = MatrixRows(held, truth, np.ones(len(truth)), unit)
    used = used_by(models, table.column_names, {"a": "signal", "copy": "signal"})
    options = {"seed": 0, "threads": 1} | changes
    found = permutation_importance(models, rows, CLASSES, used, check=lambda: None, **options)
    features, groups = (
        {r[k]: r for r in t.iter_rows(named=True)} for t, k in zip(found, ("feature", "group"), strict=True)
    )
    return features, groups, rows


def test_the_informative_feature_costs_noise_does_not_and_an_unused_one_is_exactly_zero() -> None:
    features, _, _ = run()
    assert features["a"]["permutation"] > 10 * abs(features["a"]["permutation_sd"]) / 3
    assert features["a"]["permutation"] > 0.05
    assert features["a"]["permutation_ap"] > 0.05
    for name in ("noise0", "noise1", "gaps"):
        assert abs(features[name]["permutation"]) < 0.1 * features["a"]["permutation"]
        assert features[name]["permutation_note"] == ""
    assert features["flat"]["permutation"] == features["flat"]["permutation_sd"] == 0.0
    assert features["flat"]["permutation_note"] == UNUSED


def test_copies_hide_each_other_and_their_group_does_not() -> None:
    features, groups, _ = run()
    alone = features["a"]["permutation"] + features["copy"]["permutation"]
    assert features["copy"]["permutation"] > 0  # both are used
    assert groups["signal"]["permutation"] > 1.2 * max(features["a"]["permutation"], features["copy"]["permutation"])
    assert groups["signal"]["permutation"] > 0.5 * alone
    assert abs(groups["others"]["permutation"]) < 0.1 * groups["signal"]["permutation"]


def test_only_the_first_features_by_gain_are_moved_and_the_rest_say_so() -> None:
    features, _, _ = run(noise=60)
    notes = [f["permutation_note"] for f in features.values()]
    assert notes.count("") == MOST_FEATURES
    assert notes.count(UNMEASURED) > 0
    for f in features.values():
        assert (f["permutation"] is None) == (f["permutation_note"] == UNMEASURED)


def test_the_same_for_any_number_of_threads_and_another_for_another_seed() -> None:
    first, second, other = run()[:2], run(threads=2)[:2], run(seed=1)[:2]
    assert first == second
    assert first != other


def test_the_rows_are_left_as_they_were() -> None:
    table, label, unit = table_of(30, 0)
    rows = MatrixRows(table, label, np.ones(len(label)), unit)
    models = {"donor": trained(table, label, 5)}
    before = table.to_pydict()
    permutation_importance(
        models, rows, CLASSES, used_by(models, table.column_names, {}), seed=0, threads=1, check=lambda: None
    )
    assert rows.table.to_pydict() == before


def test_the_models_see_what_they_see_elsewhere() -> None:
    """Missing cells and small integers arrive as they do from Arrow."""
    table, label, _ = table_of(60, 0)
    model = trained(table, label, 10)
    assert np.array_equal(model.inplace_predict(as_matrix(table)), model.inplace_predict(table))


def test_a_sliced_table_is_read_from_where_it_begins() -> None:
    table, label, unit = table_of(60, 0)
    models = {"donor": trained(table, label, 10)}
    used = used_by(models, table.column_names, {})
    whole = MatrixRows(table.take(pa.array(range(400, 1200))), label[400:], np.ones(800), unit[400:])
    sliced = MatrixRows(table.slice(400), label[400:], np.ones(800), unit[400:])
    found = [
        permutation_importance(models, r, CLASSES, used, seed=0, threads=1, check=lambda: None) for r in (whole, sliced)
    ]
    assert found[0][0].equals(found[1][0])


def test_rows_beyond_the_most_are_drawn_and_stand_for_all() -> None:
    table, label, unit = table_of(500, 0)
    drawn = fewer(MatrixRows(table, label, np.full(len(label), 2.0), unit), 2, 0)
    assert len(drawn) == PERMUTED_ROWS
    for code in (0, 1):
        assert drawn.weight[drawn.label == code].sum() == pytest.approx(2 * (label == code).sum())
