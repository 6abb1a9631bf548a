"""Metrics against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval
from metabatch.metrics.classification import all_metrics, class_metrics, expected_calibration_error, top_k


@settings(deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_ranking_ap_equals_scikit_learn(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 5, 60) / 5 if ties else rng.random(60)
    positive = rng.random(60) < 0.3
    weight = rng.random(60) * 10
    if not positive.any():
        return
    expected = average_precision_score(positive, score, sample_weight=weight)
    assert Ranking.of(score, positive).average_precision(weight) == pytest.approx(expected, abs=1e-12)


def test_a_resample_equals_repeating_the_rows() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(6), 10)
    score, positive = rng.random(60), rng.random(60) < 0.4
    draws = group_multiplicities(6, 5, seed=0)
    found = bootstrap_ap({"m": Ranking.of(score, positive)}, np.ones(60), group, draws)["m"]
    for times, value in zip(draws, found, strict=True):
        rows = np.repeat(np.arange(60), times[group])
        assert value == pytest.approx(average_precision_score(positive[rows], score[rows]), abs=1e-12)


def test_interval_is_none_when_mostly_undefined() -> None:
    assert interval(np.array([np.nan, np.nan, 0.5])) is None
    assert interval(np.linspace(0, 1, 101)) == pytest.approx((0.025, 0.975))


def test_top_k_by_hand_with_ties_and_weights() -> None:
    positive = np.array([True, False, True, False])
    assert top_k(np.array([0.9, 0.8, 0.7, 0.1]), positive, np.ones(4)) == pytest.approx(0.5)
    assert top_k(np.array([0.5, 0.5, 0.5, 0.5]), positive, np.ones(4)) == pytest.approx(0.5)
    # The best-scored negative stands for two positions: it fills both places.
    assert top_k(np.array([0.7, 0.9, 0.6, 0.1]), positive, np.array([1.0, 2.0, 1.0, 1.0])) == pytest.approx(0.0)


def test_ece_of_a_perfectly_calibrated_and_an_overconfident_score() -> None:
    p = np.array([0.5] * 10)
    positive = np.array([True, False] * 5)
    assert expected_calibration_error(p, positive, np.ones(10)) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(10, 0.9), positive, np.ones(10)) == pytest.approx(0.4)


def test_an_absent_class_gives_null_not_zero() -> None:
    found = class_metrics(np.array([0.1, 0.2]), np.array([False, False]), np.ones(2))
    assert found["ap"] is None
    assert found["roc_auc"] is None
    assert found["brier"] is not None


def test_weights_count_as_repeated_rows() -> None:
    rng = np.random.default_rng(2)
    proba = rng.dirichlet([1, 1, 1], 50)
    label, times = rng.integers(0, 3, 50), rng.integers(1, 4, 50)
    weighted = all_metrics(proba, label, times.astype(float), ("a", "b", "c"))
    rows = np.repeat(np.arange(50), times)
    repeated = all_metrics(proba[rows], label[rows], np.ones(len(rows)), ("a", "b", "c"))
    for name in ("ap", "roc_auc", "f1", "top_k", "brier", "ece", "log_loss"):
        assert weighted["classes"]["b"][name] == pytest.approx(repeated["classes"]["b"][name])
    assert weighted["log_loss"] == pytest.approx(repeated["log_loss"])
