"""Drawn rows stand for all rows; whole units stay whole; nothing exceeds what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabatch.analysis.sampling import draw_rows, draw_units, quotas

COUNTS = st.lists(st.integers(0, 400), min_size=1, max_size=6)


def labels(counts: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.uint8)


@given(COUNTS, st.integers(6, 1500))
def test_shares_are_equal_as_far_as_a_class_has_rows(counts: list[int], most: int) -> None:
    quota = quotas(np.array(counts), most)
    assert quota.sum() == min(most, sum(counts))
    assert (quota <= counts).all()
    assert (quota >= 0).all()
    cut = quota[quota < counts]  # classes that could give more have equal shares, and no class has a larger one
    if len(cut):
        assert cut.max() - cut.min() <= 1
        assert quota.max() <= cut.min() + 1


@given(COUNTS, st.integers(6, 1500), st.integers(0, 2**32))
def test_drawn_rows_with_their_times_stand_for_all_rows(counts: list[int], most: int, seed: int) -> None:
    label = labels(counts)
    rows, times = draw_rows(label, most, len(counts), seed)
    assert len(rows) == len(times) == min(most, len(label))
    assert (np.diff(rows) > 0).all()
    stands_for = np.bincount(label[rows], weights=times, minlength=len(counts))
    assert stands_for == pytest.approx(np.array(counts))
    again, _ = draw_rows(label, most, len(counts), seed)
    assert np.array_equal(rows, again)


def test_every_row_of_a_class_is_drawn_as_often_as_another() -> None:
    label = labels([60, 6])
    drawn = np.zeros(len(label))
    for seed in range(2000):
        drawn[draw_rows(label, 26, 2, seed)[0]] += 1
    common = drawn[label == 0] / 2000  # 20 of 60; the standard error is 0.0105
    assert np.abs(common - 1 / 3).max() < 0.055
    assert (drawn[label == 1] == 2000).all()


def test_fewer_rows_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 row"):
        draw_rows(labels([5, 5, 5]), 2, 3, 0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 2000), st.integers(0, 2**32))
def test_units_fit_unless_a_single_one_does_not(sizes: list[int], most: int, seed: int) -> None:
    size = np.array(sizes, dtype=np.uint32)  # as polars counts rows
    chosen = draw_units(size, most, seed)
    assert chosen.any()
    if size.sum() <= most:
        assert chosen.all()
    elif size.min() <= most:
        assert size[chosen].sum() <= most
    else:
        assert chosen.sum() == 1
    assert np.array_equal(chosen, draw_units(size, most, seed))


def test_a_unit_too_large_for_all_does_not_keep_the_others_out() -> None:
    size = np.array([10, 10, 5000, 10])
    for seed in range(20):
        assert draw_units(size, 100, seed).tolist() == [True, True, False, True]


def test_no_units_are_none() -> None:
    assert draw_units(np.array([], dtype=np.int64), 10, 0).shape == (0,)
