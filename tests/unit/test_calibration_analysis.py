"""The calibration analysis: numbers against known truths, and on the shipped data calibration helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from metabatch.analysis.calibration import calibration
from metabatch.analysis.calibration_metrics import judge
from metabatch.analysis.frame import Found, ImpossibleError, study
from metabatch.analysis.scored import ScoredRows, load_scored
from metabatch.metrics.bootstrap import group_multiplicities
from metabatch.metrics.classification import class_metrics
from metabatch.models.calibration import logit_regression, normalise
from metabatch.models.choice import fit_calibration
from metabatch.rundir.layout import RunDir
from metabatch.rundir.tables import read_genes
from tests.conftest import DEMO, succeed

CLASSES = ("rest", "site")
DEMO_CLASSES = ("neither", "donor", "acceptor")


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def generated(
    before: Callable[[np.ndarray], np.ndarray], after: Callable[[np.ndarray], np.ndarray], *, genes: int = 60,
    per_gene: int = 300, seed: int = 0, centre: float = -2.0,
) -> ScoredRows:  # fmt: skip
    """Rows whose true log-odds are z; `before` and `after` make the log-odds that the two scores say."""
    rng = np.random.default_rng(seed)
    gene = np.repeat(np.arange(genes), per_gene)
    z = rng.normal(centre, 1.5, len(gene)) + rng.normal(0, 0.2, genes)[gene]
    label = (rng.random(len(gene)) < sigmoid(z)).astype(np.uint8)

    def scores(line: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        p = sigmoid(line(z))
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    return ScoredRows(
        gene=gene, group=gene, label=label, weight=np.ones(len(gene)), base=np.full((len(gene), 2), np.nan),
        meta=scores(after), raw=scores(before), gene_names=[f"G{i}" for i in range(genes)], of_rows=len(gene),
        of_genes=genes,
    )  # fmt: skip


def site(found: Found) -> dict[str, Any]:
    return found.facts["classes"]["site"]


def test_a_repaired_score_is_seen_to_be_better_and_right() -> None:
    found = calibration(generated(lambda z: 2 * z, lambda z: z), CLASSES, method="platt", seed=1)
    facts = site(found)
    assert facts["ece_before"] > 0.04
    assert facts["ece_after"] < 0.01
    for metric in ("ece", "brier", "log_loss"):
        low, high = facts[f"{metric}_difference_ci95"]
        assert low < facts[f"{metric}_difference"] < high < 0
    low, high = facts["slope_ci95"]
    assert low < 1 < high
    assert (facts["verdict"], facts["confidence"]) == ("better", "as it should be")
    assert not found.flags
    assert f"site {facts['ece_before']:.3g} before, {facts['ece_after']:.3g} after" in found.says[0]


@pytest.mark.parametrize(("factor", "words"), [(1.5, "overconfident"), (0.6, "underconfident")])
def test_cox_slope_finds_how_sure_the_probabilities_are(factor: float, words: str) -> None:
    found = calibration(generated(lambda z: z, lambda z: factor * z), CLASSES, method="platt", seed=1)
    facts = site(found)
    assert facts["slope"] == pytest.approx(1 / factor, abs=0.05)
    assert facts["confidence"] == words
    assert any("overconfident" in flag for flag in found.flags) == (words == "overconfident")


def test_calibration_that_harms_is_flagged_even_when_it_is_not_too_sure() -> None:
    found = calibration(generated(lambda z: z, lambda z: z + 1), CLASSES, method="isotonic", seed=1)
    assert site(found)["verdict"] == "worse"
    assert site(found)["intercept"] == pytest.approx(-1, abs=0.1)
    assert [f for f in found.flags if f.startswith("site: calibration raises the log loss by")]


def test_numbers_are_those_of_the_metrics_and_of_real_resamples() -> None:
    rows = generated(lambda z: 1.4 * z, lambda z: 1.1 * z + 0.2, genes=25, per_gene=80)
    rows = replace(rows, weight=np.random.default_rng(2).integers(1, 5, len(rows)).astype(float))
    positive, times = rows.label == 1, group_multiplicities(25, 120, seed=3).astype(float)
    before, after = (np.asarray(p[:, 1], dtype=np.float64) for p in (rows.raw, rows.meta) if p is not None)
    judged = judge(before, after, positive, rows.weight, rows.group, times)
    for p, found in ((before, judged.before), (after, judged.after)):
        expected = class_metrics(p, positive, rows.weight)
        assert found == pytest.approx({m: expected[m] for m in found}, rel=1e-9)
    drawn = [rows.weight * t[rows.group] for t in times]
    losses = [[float(class_metrics(p, positive, w)["log_loss"] or np.nan) for p in (after, before)] for w in drawn]
    span = np.percentile([a - b for a, b in losses], [2.5, 97.5])
    assert judged.change["log_loss"][1] == pytest.approx(tuple(span), rel=1e-9)
    # One Newton step a resample instead of a whole fit: the interval is nearly that of whole fits.
    slopes = np.percentile([logit_regression(after, positive, w)[0] for w in drawn], [2.5, 97.5])
    assert judged.slope[1] is not None
    assert judged.slope[1] == pytest.approx(tuple(slopes), abs=0.1 * float(slopes[1] - slopes[0]))


def test_intervals_of_no_difference_hold_zero_about_as_often_as_they_claim() -> None:
    """Both scores err by as much, in directions the data do not tell apart: ECE's noise must not look like a gain."""
    outside = 0
    for seed in range(40):
        rows = generated(lambda z: z, lambda z: z, genes=30, per_gene=60, seed=seed, centre=-1.0)
        wrong = np.random.default_rng(seed).normal(0, 0.5, (len(rows), 2)).astype(np.float32)
        raw, meta = (np.asarray(sigmoid(np.log(p / (1 - p)) + e)) for p, e in zip(
            (rows.meta[:, 1], rows.meta[:, 1]), wrong.T, strict=True))  # fmt: skip
        times = group_multiplicities(30, 200, seed=1).astype(float)
        found = judge(raw.astype(float), meta.astype(float), rows.label == 1, rows.weight, rows.group, times)
        low, high = found.change["ece"][1] or (0.0, 0.0)
        outside += not low <= 0 <= high
    assert outside <= 6  # 2 expected


def test_rows_of_a_run_with_a_prior_are_judged_at_that_prevalence() -> None:
    rows = generated(lambda z: z, lambda z: z, genes=80, per_gene=600, centre=-4.0)
    share = float((rows.label == 1).mean())
    kept = (rows.label == 1) | (np.random.default_rng(1).random(len(rows)) < 0.1)
    assert rows.raw is not None
    narrow = {n: getattr(rows, n)[kept] for n in ("gene", "group", "label", "weight", "base", "meta", "raw")}
    sampled = replace(rows, **narrow, of_rows=int(kept.sum()))
    without = site(calibration(sampled, CLASSES, method="platt", seed=1))
    found = calibration(sampled, CLASSES, method="platt", seed=1, prior={"site": share})
    assert without["intercept"] == pytest.approx(np.log(10), abs=0.3)
    assert site(found)["intercept_ci95"][0] < 0 < site(found)["intercept_ci95"][1]
    assert site(found)["prevalence"] == pytest.approx(share)
    assert "--prior" in found.on


def test_what_is_impossible_is_said() -> None:
    rows = generated(lambda z: z, lambda z: z, genes=5)
    with pytest.raises(ImpossibleError, match="before calibration"):
        calibration(replace(rows, raw=None), CLASSES, method="platt", seed=1)
    with pytest.raises(ImpossibleError, match="one gene"):
        calibration(replace(rows, group=np.zeros(len(rows), dtype=int)), CLASSES, method="platt", seed=1)
    with pytest.raises(ImpossibleError, match="no class"):
        calibration(replace(rows, label=np.zeros(len(rows), dtype=int)), CLASSES, method="platt", seed=1)


def test_a_class_that_is_absent_is_left_out_and_named() -> None:
    rows = generated(lambda z: z, lambda z: z, genes=5)
    third = np.full((len(rows), 1), 1e-6, dtype=np.float32)
    assert rows.raw is not None
    rows = replace(rows, raw=np.hstack([rows.raw, third]), meta=normalise(np.hstack([rows.meta, third])))
    found = calibration(rows, (*CLASSES, "absent"), method="platt", seed=1)
    assert list(found.facts["classes"]) == list(CLASSES)
    assert "absent" in found.says[-1]


def test_pictures_tables_and_numbers_are_written_and_the_same_for_a_seed(tmp_path: Path) -> None:
    rows = generated(lambda z: 2 * z, lambda z: z, centre=-6.0)
    made = [study("calibration", "t", lambda: calibration(rows, CLASSES, method="platt", seed=4), tmp_path)
            for _ in range(2)]  # fmt: skip
    assert made[0].status == "made", made[0].why
    assert made[0].facts == made[1].facts
    assert [p.name for p in made[0].pictures] == ["calibration-rest", "calibration-site"]
    curve = pl.read_csv(tmp_path / "figures" / "calibration-site.csv")
    for when in ("before", "after"):
        for scale in ("probability", "log-odds"):
            part = curve.filter(pl.col("when") == when, pl.col("scale") == scale)
            assert part["rows"].sum() == len(rows)
            assert part["positives"].sum() == int(rows.label.sum())
    # A rare class lies in few bins of probability, but is told apart on log-odds.
    filled = curve.filter(pl.col("when") == "after").group_by("scale").len()
    assert dict(filled.iter_rows())["log-odds"] > dict(filled.iter_rows())["probability"]
    assert pl.read_parquet(tmp_path / "calibration-curves.parquet").height > curve.height


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("calibrated") / "run"
    succeed(
        "plan", "--quiet", "--n-estimators", "60", "--learning-rate", "0.2", "--n-folds", "3", "--calibration", "auto",
        "--threads", "1", DEMO, run,
    )  # fmt: skip
    succeed("train-instance", "--quiet", run, "0")
    return run


@pytest.mark.parametrize("method", ["platt", "auto"])
def test_on_the_demo_calibration_lowers_ece_and_never_raises_log_loss_beyond_its_interval(
    demo_run: Path, method: str
) -> None:
    genes = read_genes(RunDir(demo_run))
    columns: Any = SimpleNamespace(classes=DEMO_CLASSES, scores={})
    oof = demo_run / "instances" / "00" / "oof.parquet"
    rows = load_scored(oof, columns, dict(zip(genes["gene_id"], genes["split_group"], strict=True)))
    assert rows.raw is not None
    assert rows.fold is not None
    meta = np.empty(rows.raw.shape)
    for number in np.unique(rows.fold):
        here = rows.fold == number
        part = (rows.raw[~here], rows.label[~here], rows.weight[~here].astype(np.float32))
        meta[here] = fit_calibration(*part, DEMO_CLASSES, method, {}, rows.fold[~here]).apply(rows.raw[here])
    if method == "auto":  # what the run itself wrote is exactly that: chosen and fitted on the other folds
        assert np.array_equal(rows.meta, meta.astype(np.float32))
    found = calibration(replace(rows, meta=meta), DEMO_CLASSES, method=method, seed=42).facts["classes"]
    assert list(found) == list(DEMO_CLASSES)
    for facts in found.values():
        assert facts["ece_after"] < facts["ece_before"]
        assert facts["log_loss_difference_ci95"][0] <= 0
        assert facts["verdict"] != "worse"
