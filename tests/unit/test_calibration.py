"""Calibration: right where the truth is known, honest where it cannot be fitted."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.metrics.bootstrap import group_multiplicities, interval
from metabatch.metrics.classification import class_metrics, expected_calibration_error
from metabatch.models.calibration import Calibration, Calibrator, fit, normalise, prior_ratios
from metabatch.models.choice import choose, fit_calibration
from metabatch.options import Options, validate
from metabatch.training.crossval import CrossValidation, cross_fitted
from metabatch.training.matrix import Rows
from tests.conftest import succeed, write_table


def overconfident(seed: int = 0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose logit is twice the true one."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-z))
    return 1 / (1 + np.exp(-2 * z)), truth


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
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


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@settings(deadline=None, max_examples=15)
@given(st.floats(0.3, 4), st.integers(0, 1000))
def test_a_temperature_is_found_whatever_the_weights_are_scaled_by(temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, 8000)
    positive, score = rng.random(len(z)) < sigmoid(z), sigmoid(temperature * z)
    found = fit(score, positive, np.full(len(z), 0.01), "temperature")
    assert found.method == "temperature"
    assert 1 / found.slope == pytest.approx(temperature, rel=0.1)
    assert found.intercept == 0
    assert found.slope == pytest.approx(fit(score, positive, np.full(len(z), 100.0), "temperature").slope, rel=1e-6)
    # It is the least log loss of the family.
    for other in (0.95, 1.05):
        near = msgspec.structs.replace(found, slope=found.slope * other)
        losses = [class_metrics(c.apply(score), positive, np.ones(len(z)))["log_loss"] or 0 for c in (found, near)]
        assert losses[0] < losses[1]


def test_scores_without_a_finite_temperature_are_left_as_they_are() -> None:
    score = np.array([0.1, 0.2, 0.8, 0.9])
    for positive in ([True, True, False, False], [False, False, True, True]):
        found = fit(score, np.array(positive), np.ones(4), "temperature")
        assert found.method == "none"
        assert "bound" in str(found.note)


def folded(line: Any, *, n: int = 20_000, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores sigmoid(line(z)) of rows whose true log-odds are z; whether positive; fold."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, n)
    return sigmoid(line(z)), rng.random(n) < sigmoid(z), np.arange(n) % folds


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (lambda z: z, "none"),
        (lambda z: 2 * z, "temperature"),
        (lambda z: 2 * z + 1, "platt"),
        (lambda z: np.where(z > -1, z + 2, z - 2), "isotonic"),
    ],
)
def test_auto_takes_the_simplest_method_that_repairs_the_scores(line: Any, taken: str) -> None:
    score, positive, fold = folded(line)
    found = choose(score, positive, np.ones(len(score)), fold)
    assert found.method == taken
    assert str(found.note).startswith(f"chosen by auto: {taken}, log loss ")
    alone = fit(score, positive, np.ones(len(score)), taken)
    assert msgspec.structs.replace(found, note=None) == msgspec.structs.replace(alone, note=None)


def cross_validated(raw: np.ndarray, label: np.ndarray, fold: np.ndarray, method: str) -> tuple[Any, Rows, Any]:
    rows = Rows(np.zeros(len(label), np.int32), label, np.ones(len(label), np.float32), ["g"], [(len(label),)])
    options = Options(calibration=method, classes=("rest", "site"))  # type: ignore[arg-type]
    plan = SimpleNamespace(columns=SimpleNamespace(classes=("rest", "site")), options=options)
    return CrossValidation(raw=raw, meta=raw, fold=fold), rows, plan


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic", "auto"])
def test_no_row_has_a_say_in_its_own_calibration_nor_in_the_choice_of_it(method: str) -> None:
    score, positive, fold = folded(lambda z: 2 * z + 1, n=3000, folds=4)
    raw = np.stack([1 - score, score], axis=1).astype(np.float32)
    before = cross_fitted(*cross_validated(raw, positive.astype(np.uint8), fold, method))
    turned = np.where(fold == 2, ~positive, positive)  # all labels of one fold are wrong
    after = cross_fitted(*cross_validated(raw, turned.astype(np.uint8), fold, method))
    assert np.array_equal(before[fold == 2], after[fold == 2])
    assert not np.array_equal(before[fold != 2], after[fold != 2])


def test_auto_with_two_folds_has_one_left_and_falls_back_to_platt() -> None:
    score, positive, fold = folded(lambda z: 2 * z, n=2000, folds=2)
    raw, label = np.stack([1 - score, score], axis=1), positive.astype(np.uint8)
    found = cross_fitted(*cross_validated(raw, label, fold, "auto"))
    assert np.array_equal(found, cross_fitted(*cross_validated(raw, label, fold, "platt")))
    alone = choose(score, positive, np.ones(len(score)), np.zeros(len(score)))
    assert alone.method == "platt"
    assert "one fold only" in str(alone.note)
    assert choose(score, positive, np.ones(len(score)), fold).method == "temperature"


def test_auto_survives_a_class_that_only_one_fold_holds_or_none() -> None:
    score, positive, fold = folded(lambda z: z, n=300, folds=3)
    assert choose(score, positive & (fold == 0), np.ones(300), fold).note is not None
    assert choose(score, np.zeros(300, dtype=bool), np.ones(300), fold).method == "none"


def test_every_method_is_an_option_and_comes_back_from_its_file() -> None:
    for method in ("platt", "isotonic", "temperature", "none", "auto"):
        assert validate(msgspec.convert({"calibration": method}, Options)).calibration == method
    kept = Calibration(classes=("a",), calibrators={"a": Calibrator(method="temperature", slope=0.5, note="why")})
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Calibration) == kept


PREVALENCE = 0.01


def population(seed: int, genes: int = 200, per_gene: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """gene, whether a site (1 %), and a score of a model trained where negatives are ten times too few, and too sure.

    Class-conditional: x is normal around 3 in sites and around 0 elsewhere, so the log-odds are 3 x - 4.5 + log prior.
    """
    rng = np.random.default_rng(seed)
    gene = np.repeat(np.arange(genes), per_gene)
    site = rng.random(len(gene)) < PREVALENCE
    x = rng.normal(3.0 * site, 1.0)
    present = 10 * PREVALENCE / (10 * PREVALENCE + 1 - PREVALENCE)
    return gene, site, sigmoid(1.5 * (3 * x - 4.5 + math.log(present / (1 - present))))


def test_prior_and_weights_both_recover_a_known_prevalence_and_agree() -> None:
    fitted_on, site, score = population(seed=1)
    kept = site | (np.random.default_rng(2).random(len(site)) < 0.1)
    raw, label, genes = np.stack([1 - score, score], axis=1)[kept], site[kept].astype(int), fitted_on[kept]
    # Judged on the whole of another population, at its natural prevalence.
    gene, truth, score = population(seed=3)
    everything = np.stack([1 - score, score], axis=1)
    # Genes that are fitted on and genes that are judged are both drawn anew: both make the mean uncertain.
    times = group_multiplicities(200, 80, seed=4)
    spans, metrics = {}, {}
    for way, weight, prior in (
        ("neither", np.ones(len(label)), {}),
        ("prior", np.ones(len(label)), {"site": PREVALENCE}),
        ("weights", np.where(label == 1, 1.0, 10.0), {}),
    ):

        def predict(weight: np.ndarray, prior: dict[str, float]) -> np.ndarray:
            return fit_calibration(raw, label, weight, ("rest", "site"), "platt", prior).apply(everything)[:, 1]

        means = [
            float(u @ np.bincount(gene, weights=predict(weight * t[genes], prior)) / len(gene))
            for t, u in zip(times[:40], times[40:], strict=True)
        ]
        spans[way] = interval(np.array(means)) or (0.0, 0.0)
        p = predict(weight, prior)
        metrics[way] = class_metrics(p, truth, np.ones(len(p))) | {"mean": float(p.mean())}
    for way in ("prior", "weights"):
        low, high = spans[way]
        assert low < PREVALENCE < high
        assert high - low < 0.3 * PREVALENCE
        for metric in ("brier", "log_loss", "ece"):
            assert metrics[way][metric] < 0.95 * metrics["neither"][metric]  # type: ignore[operator]
    assert spans["neither"][0] > 2 * PREVALENCE
    assert metrics["prior"]["mean"] == pytest.approx(metrics["weights"]["mean"], rel=0.05)
    assert metrics["prior"]["log_loss"] == pytest.approx(metrics["weights"]["log_loss"], rel=0.01)


def natural_table(first: int, genes: int, rows: int, seed: int) -> pl.DataFrame:
    """Genes with 2 % donors and 2 % acceptors at random places, and a feature that tells them apart, but not well.

    Where scores come near 1, no 85 such rows tell 0.97 from 0.999, and the prior would magnify the difference.
    """
    rng = np.random.default_rng(seed)
    label = rng.choice(3, genes * rows, p=[0.96, 0.02, 0.02])
    return pl.DataFrame(
        {
            "gene_id": np.repeat([f"G{first + i:03d}" for i in range(genes)], rows),
            "position": np.tile(np.arange(rows), genes),
            "splice_type": np.array(["neither", "donor", "acceptor"])[label],
            "signal": (np.array([0.0, 1.5, -1.5])[label] + rng.normal(0, 1, len(label))).astype(np.float32),
            "noise": rng.normal(0, 1, len(label)).astype(np.float32),
        }
    )


def test_predictions_of_a_run_with_a_prior_have_the_natural_prevalence(tmp_path: Path) -> None:
    everything = natural_table(0, 100, 400, seed=1)
    few = (pl.col("splice_type") != "neither") | (pl.Series(np.random.default_rng(2).random(everything.height)) < 0.1)
    sampled = everything.filter(few)
    data, run, out = write_table(tmp_path / "data", sampled), tmp_path / "run", tmp_path / "out"
    words = ("--n-folds", "3", "--n-estimators", "60", "--max-depth", "3", "--threads", "1")
    succeed("run-all", "--quiet", *words, "--prior", "donor=0.02,acceptor=0.02", data, run)
    # Other genes than were trained on, with all their negatives.
    fresh = natural_table(500, 60, 400, seed=3)
    succeed("predict", "--quiet", run, write_table(tmp_path / "fresh", fresh), out)
    genes = pl.read_parquet(out / "part-*.parquet").join(
        fresh.select("gene_id", "position", truth="splice_type"), on=["gene_id", "position"]
    )
    assert genes.height == fresh.height
    times = group_multiplicities(60, 1000, seed=4)
    for name in ("donor", "acceptor"):
        mean = pl.col(f"{name}_meta").mean().cast(pl.Float64)
        per_gene = genes.group_by("gene_id").agg(mean, share=(pl.col("truth") == name).mean()).sort("gene_id")
        predicted, observed = per_gene[f"{name}_meta"].to_numpy(), per_gene["share"].to_numpy()
        low, high = interval(times @ observed / 60) or (0.0, 0.0)
        assert low < predicted.mean() < high
        assert low < 0.02 < high < 0.03
    # Without the prior the same model would have said several times as much.
    model = msgspec.json.decode((run / "instances/00/model/calibration.json").read_bytes(), type=Calibration)
    predicted = genes.select(f"{c}_meta" for c in model.classes).to_numpy().astype(float)
    assert normalise(predicted / np.array(model.prior_ratios))[:, 1:].mean(axis=0).min() > 0.05
