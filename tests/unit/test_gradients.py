"""Gradients whose sums do not depend on who adds up what, of the rows of a tree, and the loss that XGBoost has."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.training.gradients import Gradients

PARAMS: dict[str, object] = {
    "seed": 11, "subsample": 0.6, "objective": "binary:logistic", "tree_method": "hist", "max_bin": 64, "nthread": 1,
    "max_depth": 4, "base_score": 0.5,
}  # fmt: skip
EVERY_ROW = PARAMS | {"subsample": 1.0}


@given(
    st.integers(1, 3_000), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1), st.sampled_from(["even", "far", "constant"])
)
@settings(deadline=None)
def test_sums_are_exact_in_any_order(rows: int, scale: float, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    weight = (scale * rng.random(rows)).astype(np.float32)
    if kind == "far":  # from 1 to 10^-12 of it
        weight *= np.float32(10) ** -rng.integers(0, 12, rows).astype(np.float32)
    scores = np.full(rows, 1.0, np.float32) if kind == "constant" else rng.random(rows, dtype=np.float32) ** 8
    for values in Gradients(EVERY_ROW, rng.random(rows) < 0.1, weight).of(0, scores):
        exact = sum((Fraction(float(v)) for v in values), Fraction(0))
        shares = np.split(rng.permutation(values), sorted(rng.integers(0, rows, 3)))
        in_order = np.cumsum(values, dtype=np.float64)[-1]
        assert Fraction(float(in_order)) == exact
        assert sum(float(np.cumsum(s, dtype=np.float64)[-1]) for s in shares if len(s)) == in_order


@given(st.integers(1, 200_000), st.integers(0, 4), st.data())
@settings(deadline=None, max_examples=30)
def test_every_worker_has_its_part_of_what_one_alone_would_have(rows: int, tree: int, data: st.DataObject) -> None:
    at = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    shares = [slice(a, b) for a, b in zip([0, *at], [*at, rows], strict=True)]
    rng = np.random.default_rng(rows)
    label, held_out, weight = rng.random(rows) < 0.3, rng.random(rows) < 0.2, rng.random(rows, dtype=np.float32)
    scores = rng.random(rows, dtype=np.float32)
    alone = Gradients(PARAMS, label, weight, held_out).of(tree, scores)
    parts = [Gradients(PARAMS, label, weight, held_out, mine=s).of(tree, scores[s]) for s in shares]
    for whole, *pieces in zip(alone, *parts, strict=True):
        assert np.array_equal(np.concatenate(pieces), whole)
        assert not whole[held_out].any()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_as_many_rows_are_drawn_as_asked_for_others_for_every_tree_and_seed(share: float) -> None:
    rows = 150_000
    label, scores = np.zeros(rows, dtype=bool), np.full(rows, 0.5, dtype=np.float32)
    draws = [
        Gradients(PARAMS | {"seed": seed, "subsample": share}, label, None).of(tree, scores)[1] > 0
        for seed in (1, 2)
        for tree in (0, 1)
    ]
    spread = 5 * np.sqrt(share * (1 - share) / rows)
    for drawn in draws:
        assert abs(drawn.mean() - share) < spread
        for part in np.array_split(drawn, 3):
            assert abs(part.mean() - share) < 2 * spread
    for number, first in enumerate(draws):
        for second in draws[:number]:
            assert abs((first & second).mean() - share**2) < spread


class Table:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.values = rng.integers(0, 50, (4000, 8)).astype(np.float32)
        self.label = self.values[:, 0] + self.values[:, 1] > 50
        self.weight = rng.integers(1, 4, 4000).astype(np.float32)
        self.matrix = xgb.QuantileDMatrix(self.values, max_bin=64, nthread=1)


def test_the_trees_are_those_of_xgboosts_own_loss() -> None:
    """Apart from the rounding, by far smaller than a float32's: the same splits and, to its last digits, scores."""
    table = Table()
    gradients = Gradients(EVERY_ROW, table.label, table.weight)
    booster = xgb.Booster(gradients.params, [table.matrix])
    for tree in range(30):
        gradients.grow(booster, table.matrix, tree)
    found = booster.trees_to_dataframe()
    table.matrix.set_info(label=table.label, weight=table.weight)
    usual = xgb.train(EVERY_ROW, table.matrix, 30)
    expected = usual.trees_to_dataframe()
    assert list(found["Feature"]) == list(expected["Feature"])
    assert np.allclose(found["Gain"], expected["Gain"], rtol=1e-3, atol=1e-6)
    assert np.abs(booster.predict(table.matrix) - usual.predict(table.matrix)).max() < 1e-5


def test_rows_that_are_not_drawn_are_as_good_as_not_there() -> None:
    table = Table()
    gradients = Gradients(PARAMS, table.label, table.weight)
    scores = np.full(4000, 0.5, dtype=np.float32)
    for tree in range(3):
        drawn = gradients.of(tree, scores)[1] > 0
        whole = xgb.Booster(gradients.params, [table.matrix])
        gradients.grow(whole, table.matrix, tree)
        some = xgb.QuantileDMatrix(table.values[drawn], ref=table.matrix, max_bin=64, nthread=1)
        alone = Gradients(EVERY_ROW, table.label[drawn], table.weight[drawn])
        booster = xgb.Booster(alone.params, [some])
        alone.grow(booster, some, tree)
        first, second = whole.trees_to_dataframe(), booster.trees_to_dataframe()
        assert list(first["Feature"]) == list(second["Feature"])
        assert np.allclose(first["Gain"], second["Gain"], rtol=1e-6)
        assert np.allclose(first["Cover"], second["Cover"], rtol=1e-6)
