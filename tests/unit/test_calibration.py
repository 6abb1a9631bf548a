"""Calibration: right where the truth is known, honest where it cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from metabatch.metrics.classification import expected_calibration_error
from metabatch.models.calibration import fit, normalise, prior_ratios
from metabatch.models.choice import fit_calibration


def overconfident(seed: int = 0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose logit is twice the true one."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-z))
    return 1 / (1 + np.exp(-2 * z)), truth


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_repairs_overconfidence_on_other_data(method: str) -> None:
    score, truth = overconfident()
    calibrator = fit(score, truth, np.ones(len(score)), method)
    fresh, fresh_truth = overconfident(seed=1)
    before = expected_calibration_error(fresh, fresh_truth, np.ones(len(fresh)))
    after = expected_calibration_error(calibrator.apply(fresh), fresh_truth, np.ones(len(fresh)))
    assert before > 0.05
    assert after < 0.015


def test_platt_recovers_the_slope() -> None:
    score, truth = overconfident()
    calibrator = fit(score, truth, np.ones(len(score)), "platt")
    assert calibrator.slope == pytest.approx(0.5, abs=0.03)
    assert calibrator.intercept == pytest.approx(0.0, abs=0.05)


def test_prior_moves_down_sampled_scores_to_the_natural_prevalence() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(-4, 1.5, 400_000)
    truth = rng.random(len(z)) < 1 / (1 + np.exp(-z))
    kept = truth | (rng.random(len(z)) < 0.05)  # one negative in twenty
    score = 1 / (1 + np.exp(-(z + np.log(20))))  # what a model of the kept rows says
    raw = np.stack([1 - score, score], axis=1)
    calibration = fit_calibration(
        raw[kept],
        truth[kept].astype(int),
        np.ones(kept.sum()),
        ("rest", "site"),
        "platt",
        {"site": float(truth.mean())},
    )
    found = calibration.apply(raw)[:, 1]
    assert found.mean() == pytest.approx(truth.mean(), rel=0.05)
    assert (np.argsort(found) == np.argsort(score)).all()  # a prior never changes the ranking of two classes


def test_prior_is_bayes_over_all_classes() -> None:
    rng = np.random.default_rng(5)
    natural = np.array([0.96, 0.03, 0.01])
    label = rng.choice(3, 600_000, p=natural)
    x = rng.normal(label, 1.0)
    density = np.exp(-0.5 * (x[:, None] - np.arange(3)) ** 2)
    truth = normalise(density * natural)
    kept = (label > 0) | (rng.random(len(label)) < 0.02)
    present = np.bincount(label[kept]) / kept.sum()
    seen = normalise(density * present)  # what a perfect model of the kept rows says
    calibration = fit_calibration(
        seen[kept], label[kept], np.ones(kept.sum()), ("a", "b", "c"), "none", {"b": 0.03, "c": 0.01}
    )
    assert np.abs(calibration.apply(seen) - truth).max() < 1e-6
    assert calibration.apply(seen).mean(axis=0) == pytest.approx(natural, rel=0.02)


def test_classes_without_a_prior_share_the_rest_as_they_do_in_the_data() -> None:
    label = np.repeat([0, 1, 2], [60, 30, 10])
    ratios = np.array(prior_ratios(label, np.ones(100), ("a", "b", "c"), {"c": 0.01}))
    assert ratios * [0.6, 0.3, 0.1] == pytest.approx([0.66, 0.33, 0.01])


def test_one_class_only_leaves_scores_as_they_are_and_says_so() -> None:
    calibrator = fit(np.array([0.2, 0.3]), np.array([False, False]), np.ones(2), "platt")
    assert calibrator.method == "none"
    assert calibrator.note is not None
    assert calibrator.apply(np.array([0.25]))[0] == pytest.approx(0.25)


def test_a_ranking_is_never_turned_over() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9])
    calibrator = fit(score, np.array([True, True, False, False]), np.ones(4), "platt")
    assert calibrator.method == "none"
    assert calibrator.note is not None


def test_rows_add_up_to_one() -> None:
    rows = normalise(np.array([[0.2, 0.2, 0.2], [1e-7, 1e-7, 1e-7]]))
    assert rows.sum(axis=1) == pytest.approx([1.0, 1.0])
