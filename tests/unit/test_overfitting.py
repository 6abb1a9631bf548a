"""A planted overfit is flagged, a healthy cross-validation is not, and too few trees are told from enough."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from metabatch.analysis.frame import Found, ImpossibleError, study
from metabatch.analysis.overfitting import overfitting
from metabatch.metrics.classification import class_metrics
from metabatch.options import Options
from metabatch.resources.signals import StopFlag
from metabatch.rundir.manifests import Booster
from metabatch.training.checkpoints import Checkpoints
from metabatch.training.crossval import CrossValidation, cross_validate
from metabatch.training.matrix import Rows

CLASSES = ("neither", "donor")


def crossed(
    folder: Path, rows: int, noise: float, seed: int = 0, label: np.ndarray | None = None, **options: Any
) -> tuple[CrossValidation, Options, xgb.DMatrix, Rows]:
    """Cross-validate a table of five informative features among twenty, in genes of ten rows."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 20)).astype(np.float32)
    made = (values[:, :5].sum(axis=1) + noise * rng.normal(size=rows) > 0).astype(np.uint8)
    label = made if label is None else label
    settings = Options(**{"n_folds": 3, "max_bin": 64, "classes": CLASSES, "calibration": "none"} | options)
    gene = np.arange(rows) // 10
    table = Rows(gene, label, np.ones(rows, np.float32), [f"G{i:04d}" for i in range(gene[-1] + 1)], [(rows,)])
    matrix = xgb.QuantileDMatrix(values, max_bin=64, nthread=1)
    booster = Booster(base_score=0.5, min_child_weight=1.0, because="test")
    plan: Any = SimpleNamespace(
        options=settings, booster=booster, columns=SimpleNamespace(classes=CLASSES), seed=1, teacher=None
    )
    kept = Checkpoints(folder / "checkpoints", {}, 3600, StopFlag())
    cv = cross_validate(
        matrix, table, (gene % 3).astype(np.int16), plan, 0, 1, lambda: None, lambda _: None, lambda: None,
        lambda code, number, params: kept.slot(f"{code}-{number}", params),
    )  # fmt: skip
    return cv, settings, matrix, table


def judged(cv: CrossValidation, settings: Options) -> Found:
    return overfitting(cv.folds, limit=settings.n_estimators, patience=settings.early_stopping_patience,
                       trees=cv.rounds, on="folds")  # fmt: skip


def verdicts(found: Found) -> list[str]:
    return [c["verdict"] for c in found.facts["classes"].values()]


def test_a_healthy_run_is_not_flagged(tmp_path: Path) -> None:
    cv, settings, _, _ = crossed(tmp_path, 6_000, 0.5, max_depth=3, n_estimators=300, learning_rate=0.2)
    found = judged(cv, settings)
    assert found.flags == []
    for c in found.facts["classes"].values():
        assert c["r2_held_out"] > 0.5
        assert c["stopped_early"] == 3


def test_deep_trees_on_few_rows_without_early_stopping_are_flagged(tmp_path: Path) -> None:
    cv, settings, _, _ = crossed(
        tmp_path, 240, 3.0, max_depth=12, n_estimators=150, learning_rate=0.3, early_stopping_patience=0
    )
    found = judged(cv, settings)
    assert all("overfits" in v for v in verdicts(found))
    assert any("rises by" in flag and "donor" in flag for flag in found.flags)
    assert not any("not converged" in flag for flag in found.flags)


def test_early_stopping_cuts_the_rise_and_what_does_not_carry_over_is_flagged_all_the_same(tmp_path: Path) -> None:
    rises = []
    for patience in (0, 5):
        cv, settings, _, _ = crossed(
            tmp_path / str(patience), 240, 3.0, max_depth=12, n_estimators=150, learning_rate=0.3,
            early_stopping_patience=patience,
        )  # fmt: skip
        found = judged(cv, settings)
        rises.append(found.facts["classes"]["donor"]["rise"])
        assert any("donor: overfits: pseudo R2" in flag for flag in found.flags)
    assert rises[1] < rises[0] / 3


@pytest.mark.parametrize("patience", [0, 10])
def test_too_few_trees_are_not_converged(tmp_path: Path, patience: int) -> None:
    cv, settings, _, _ = crossed(
        tmp_path, 3_000, 0.3, max_depth=3, n_estimators=30, learning_rate=0.05, early_stopping_patience=patience
    )
    found = judged(cv, settings)
    assert [f for f in found.flags if "not converged" in f] == found.flags
    assert len(found.flags) == 2
    assert all("not converged" in v for v in verdicts(found))


def test_kept_models_of_one_fold_give_its_scores_and_survive_a_restart(tmp_path: Path) -> None:
    cv, _, matrix, _ = crossed(tmp_path, 600, 0.5, n_estimators=40, learning_rate=0.3, early_stopping_patience=4)
    assert {number for number, _ in cv.kept.values()} == {0}
    again, _, _, _ = crossed(tmp_path, 600, 0.5, n_estimators=40, learning_rate=0.3, early_stopping_patience=4)
    assert again.kept == cv.kept  # from the checkpoints
    assert again.folds == cv.folds
    for code, name in enumerate(CLASSES):
        number, model = cv.kept[name]
        booster = xgb.Booster(model_file=bytearray(model))
        held_out = cv.fold == number
        assert booster.num_boosted_rounds() == cv.folds[name][number]["best_rounds"]
        assert np.abs(booster.predict(matrix)[held_out] - cv.raw[held_out, code]).max() < 1e-6


def test_no_model_is_kept_of_a_fold_that_cannot_judge(tmp_path: Path) -> None:
    """Fold 0 holds no donor: both classes keep fold 1; without any donor neither can."""
    rng = np.random.default_rng(2)
    label = ((rng.random(600) < 0.3) & (np.arange(600) // 10 % 3 != 0)).astype(np.uint8)
    cv, settings, _, _ = crossed(tmp_path / "a", 600, 0.5, label=label, n_estimators=5)
    assert {number for number, _ in cv.kept.values()} == {1}
    assert all(len(c["folds"]) == 2 for c in judged(cv, settings).facts["classes"].values())
    cv, settings, _, _ = crossed(tmp_path / "b", 600, 0.5, label=np.zeros(600, np.uint8), n_estimators=5)
    assert cv.kept == {}
    with pytest.raises(ImpossibleError):
        judged(cv, settings)


def test_curves_in_the_fold_records_are_thin_and_hold_the_best_round(tmp_path: Path) -> None:
    cv, _, _, _ = crossed(tmp_path, 300, 1.0, n_estimators=330, max_depth=2, learning_rate=0.05,
                          early_stopping_patience=0)  # fmt: skip
    for record in cv.folds["donor"]:
        curve = record["curve"]
        assert len(curve["rounds"]) == len(curve["train"]) == len(curve["held_out"]) <= 100
        assert (curve["rounds"][0], curve["rounds"][-1]) == (1, 330)
        assert record["best_rounds"] in curve["rounds"]
        assert curve["held_out"][-1] == pytest.approx(record["held_out_log_loss"], rel=1e-3)
        assert curve["train"][-1] == pytest.approx(record["train_log_loss"], rel=1e-3)


def made_up(best: list[int], trained: int = 100) -> list[dict[str, Any]]:
    """Folds whose held-out loss falls to 0.1 at the best round and rises slowly after."""
    rounds = np.arange(1, trained + 1)
    truth = np.arange(200) % 2 == 0
    records = []
    for number, at in enumerate(best):
        held_out = 0.1 + 0.5 * np.maximum(0, at - rounds) / at + 0.0001 * np.maximum(0, rounds - at)
        curve = {"rounds": rounds.tolist(), "train": (0.6 / rounds).tolist(), "held_out": held_out.tolist()}
        metrics = class_metrics(np.where(truth, 0.9, 0.1), truth, np.ones(200))
        records.append(metrics | {
            "fold": number, "best_rounds": at, "trained_rounds": trained, "stopped_early": True, "curve": curve,
            "train_log_loss": 0.08, "held_out_log_loss": 0.1, "train_prevalence": 0.5,
        })  # fmt: skip
    return records


def test_best_rounds_that_differ_much_are_unstable_and_the_numbers_are_as_stated(tmp_path: Path) -> None:
    folds = {"donor": made_up([5, 90, 8]), "acceptor/weird": made_up([50, 52, 48])}
    trees = {"donor": 74, "acceptor/weird": 52}
    section = study("overfitting", "Overfitting", lambda: overfitting(
        folds, limit=800, patience=20, trees=trees, on="folds"), tmp_path)  # fmt: skip
    assert section.status == "made", section.why
    assert [flag.split(":")[0] for flag in section.flags] == ["donor"]
    assert "varies much" in section.flags[0]
    other = section.facts["classes"]["acceptor/weird"]
    assert other["gap"] == pytest.approx(0.02 / np.log(2))
    assert other["best_rounds_mean"] == pytest.approx(50)
    assert other["verdict"] == "sound"
    assert [p.name for p in section.pictures] == ["overfitting_donor", "overfitting_class.1"]
    drawn = pl.read_csv(tmp_path / "figures" / "overfitting_donor.csv")
    assert drawn.filter(pl.col("best"))["rounds"].to_list() == [5, 90, 8]
    assert drawn.height == 300


def test_the_trees_of_parts_are_judged_one_part_at_a_time() -> None:
    parts = [record | {"part": part} for part in (0, 1) for record in made_up([50, 52, 48])]
    found = overfitting({"donor": parts}, limit=800, patience=20, trees={"donor": 104}, on="folds")
    assert found.facts["classes"]["donor"]["trees"] == 52
    assert found.facts["classes"]["donor"]["folds"][3]["name"] == "part 1, fold 0"


def test_null_losses_as_json_has_them_do_no_harm() -> None:
    odd = made_up([50, 52])
    odd[0] |= {"train_log_loss": None, "train_prevalence": None}
    odd[0]["curve"]["train"] = [None] * 100
    found = overfitting({"donor": odd}, limit=800, patience=20, trees={"donor": 53}, on="folds")
    assert found.facts["classes"]["donor"]["gap"] == pytest.approx(0.02 / np.log(2))


def test_no_folds_are_impossible() -> None:
    with pytest.raises(ImpossibleError):
        overfitting({}, limit=800, patience=20, trees={}, on="")
