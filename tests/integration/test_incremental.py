"""--strategy incremental: linear models out of core, a strategy like the others."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import metabatch
from tests.conftest import (
    DEMO,
    NO_ANALYSES,
    at_work,
    kill_tree,
    models,
    plan_of,
    small_table,
    start,
    succeed,
    train_all,
    wait_until,
    write_table,
)

WORDS = ("--strategy", "incremental", "--holdout-fraction", "0.3", "--n-folds", "3", "--batch-size", "2000")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with all analyses, consolidated, evaluated."""
    run = tmp_path_factory.mktemp("lines") / "run"
    succeed("run-all", "--quiet", *WORDS, DEMO, run)
    return run


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_it_is_planned_trained_and_judged_like_the_others(lines: Path) -> None:
    plan = plan_of(lines)
    assert plan["strategy"] == "incremental"
    assert {a["strategy"] for a in plan["alternatives"]} >= {"single", "external", "incremental"}
    metrics = read(lines / "instances/00/metrics.json")
    assert set(metrics["epochs"]) == {"neither", "donor", "acceptor"}
    assert all(1 <= n <= plan["options"]["epochs"] for n in metrics["epochs"].values())
    oof = pl.read_parquet(lines / "instances/00/oof.parquet")
    training = pl.read_parquet(lines / "genes.parquet").filter(pl.col("split") == "train")
    assert oof.height == training["rows"].sum()
    assert oof.select(pl.col("^.*_(raw|meta)$").is_nan().any()).row(0) == (False,) * 6
    evaluation = read(lines / "evaluation/metrics.json")
    # Far from chance (sites are 1 row in 30 here, and fewer by weight), on genes that were held out.
    assert min(evaluation["meta"][c]["ap"] for c in ("donor", "acceptor")) > 0.3
    usage = read(lines / "instances/00/resource_usage.json")
    assert usage["measured_peak_bytes"] < 1.1 * usage["predicted_peak_bytes"]


def test_the_model_is_used_like_any_other_and_says_what_it_is(lines: Path, tmp_path: Path) -> None:
    model = metabatch.load(lines)
    frame = pl.read_parquet(DEMO / "positions-00000.parquet")
    proba = model.predict_proba(frame)
    assert np.allclose(proba.sum(axis=1), 1)
    succeed("predict", "--quiet", lines, DEMO / "positions-00000.parquet", tmp_path / "out")
    written = pl.read_parquet(tmp_path / "out/*.parquet")
    order = [f"{name}_meta" for name in model.classes_]
    assert np.abs(written.select(order).to_numpy() - proba).max() < 1e-6
    report = (lines / "evaluation/report.html").read_text()
    assert "sgd_logistic, up to 10 epochs, batches of 2,000 rows" in report
    assert "trees, learning rate" not in report
    own = (lines / "instances/00/report.html").read_text()
    assert "linear models have no trees" in own
    table = pl.read_parquet(lines / "instances/00/model/linear.parquet")
    assert table["feature"].to_list() == [*model.feature_names, "(intercept)"]


def test_killed_in_learning_and_started_again_it_has_the_same_coefficients(lines: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", *WORDS, *NO_ANALYSES, DEMO, run)
    words = ("train-instance", "--quiet", "--checkpoint-seconds", "0", run, "0")
    kept = run / "instances/00/checkpoints/part-0.lines.ckpt"

    def epoch() -> int:
        return json.loads(kept.read_bytes().split(b"\n", 2)[1])["facts"]["epoch"] if kept.exists() else 0

    for number in (1, 2, 3):
        process = at_work(*words)
        wait_until(lambda number=number: epoch() >= number, f"a checkpoint of epoch {number}")
        kill_tree(process)
        assert not (run / "instances/00/done.json").exists()
    succeed(*words)
    assert read(run / "instances/00/resource_usage.json")["restored_rounds"] >= 2  # whole epochs before the third
    assert models(run) == models(lines)


def test_the_threads_and_the_names_of_the_shards_are_in_no_bit(lines: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, file in enumerate(sorted(DEMO.glob("*.parquet"))):
        (data / f"{9 - number}.parquet").write_bytes(file.read_bytes())
    run = tmp_path / "run"
    succeed("plan", "--quiet", *WORDS, *NO_ANALYSES, data, run)
    succeed("train-instance", "--quiet", "--threads", "1", run, "0")
    assert models(run) == models(lines)


@pytest.mark.parametrize("spec", ["sgd_hinge", "sgd_modified_huber"])
def test_other_losses_train_to_probabilities(spec: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--strategy", "incremental", "--n-folds", "2", "--epochs", "2", "--model-spec", spec, *NO_ANALYSES)
    succeed("run-all", "--quiet", *words, DEMO, run)
    found = read(run / "evaluation/metrics.json")["meta"]
    assert min(found[c]["ap"] for c in ("donor", "acceptor")) > 0.1


def test_without_folds_every_epoch_is_learned(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(
        "run-all", "--quiet", "--strategy", "incremental", "--holdout-fraction", "0.3", "--n-folds", "0",
        "--calibration", "none", "--epochs", "2", *NO_ANALYSES, DEMO, run,
    )  # fmt: skip
    assert read(run / "instances/00/metrics.json")["epochs"] == {"neither": 2, "donor": 2, "acceptor": 2}
    assert not (run / "instances/00/oof.parquet").exists()


def test_the_batch_is_what_the_budget_holds_and_that_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    usual = ("--strategy", "incremental", *NO_ANALYSES)
    succeed("plan", "--quiet", *usual, "--max-memory-per-instance-gb", "2", DEMO, tmp_path / "roomy")
    roomy = plan_of(tmp_path / "roomy")
    assert roomy["options"]["batch_size"] == 250_000
    budget = (roomy["instances"][0]["predicted_peak_bytes"] - (4 << 20)) / 2**30
    words = (*usual, "--max-memory-per-instance-gb", f"{budget:.5f}", DEMO, run)
    said = succeed("plan", *words).out
    plan = plan_of(run)
    assert 2_000 < plan["options"]["batch_size"] < roomy["instances"][0]["rows"]
    assert plan["instances"][0]["predicted_peak_bytes"] <= plan["budget"]["bytes"]
    assert f"batch_size 250000 -> {plan['options']['batch_size']}" in said.replace(",", "")
    assert "already planned" in succeed("plan", *words).out
    refused = start("plan", "--strategy", "incremental", "--max-memory-per-instance-gb", "0.2", DEMO, tmp_path / "no")
    assert refused.code == 4
    assert not (tmp_path / "no").exists()


def test_wide_kmers_are_hashed_into_as_many_columns_as_asked_for_and_the_model_is_of_the_kmers(tmp_path: Path) -> None:
    """As many 6-mers as other features, and one of them tells the donors; budgets are of the narrower rows."""
    rng = np.random.default_rng(2)
    table = small_table(genes=30, rows=200)
    donors = (table["splice_type"] == "donor").to_numpy()
    kmers = ["".join(bases) for bases in itertools.islice(itertools.product("ACGT", repeat=6), 600)]
    counts = {f"6mer_{k}": rng.poisson(0.03, len(donors)).astype(np.uint8) for k in kmers}
    counts["6mer_AAACGT"] += np.uint8(3) * donors
    data = write_table(tmp_path / "data", table.with_columns(**{n: pl.Series(v) for n, v in counts.items()}))
    words = ("--strategy", "incremental", "--holdout-fraction", "0.3", "--n-folds", "2", "--epochs", "4", *NO_ANALYSES)
    run, plain = tmp_path / "run", tmp_path / "plain"
    succeed("run-all", "--quiet", *words, "--hash-kmers", "64", data, run)
    succeed("plan", "--quiet", *words, data, plain)
    narrow, wide = plan_of(run), plan_of(plain)
    assert wide["memory_law"]["features"] - narrow["memory_law"]["linear_width"] == 600 - 64
    assert narrow["instances"][0]["predicted_peak_bytes"] < wide["instances"][0]["predicted_peak_bytes"]
    usage = read(run / "instances/00/resource_usage.json")
    assert usage["measured_peak_bytes"] < 1.1 * usage["predicted_peak_bytes"]
    assert read(run / "evaluation/metrics.json")["meta"]["donor"]["ap"] > 0.9
    lines = pl.read_parquet(run / "instances/00/model/linear.parquet")
    assert lines.height == wide["memory_law"]["features"] + 1
    steepest = lines.sort(pl.col("coefficient_donor").abs() / pl.col("scale"), descending=True)["feature"]
    assert "6mer_AAACGT" in steepest.head(20).to_list()  # with those that share its column
    assert "wide k-mers hashed into 64" in (run / "evaluation/report.html").read_text()
    for number in ("600", "2000"):
        refused = start("plan", *words, "--hash-kmers", number, data, tmp_path / "no")
        assert refused.code == 2
        assert "600 feature(s) are k-mers of 6 bases or more" in refused.err
    assert start("plan", "--hash-kmers", "64", data, tmp_path / "no").code == 2
    assert not (tmp_path / "no").exists()


def test_options_of_the_other_kind_of_model_are_refused(tmp_path: Path) -> None:
    for words, named in (
        (("--strategy", "incremental", "--n-estimators", "10"), "--n-estimators decides nothing for linear models"),
        (("--epochs", "3"), "--epochs decides nothing for trees"),
        (("--strategy", "incremental", "--batch-size", "10"), "--batch-size 10 is out of range"),
        (("--strategy", "incremental", "--model-spec", "svm"), "--model-spec svm cannot be used"),
    ):
        refused = start("plan", *words, DEMO, tmp_path / "run")
        assert refused.code == 2
        assert named in refused.err
    assert not (tmp_path / "run").exists()


def test_auto_never_takes_it_and_lists_it(tmp_path: Path) -> None:
    said = succeed("plan", DEMO, tmp_path / "run").out
    assert plan_of(tmp_path / "run")["strategy"] == "single"
    line = next(text for text in said.splitlines() if text.startswith("incremental"))
    assert "linear models, only when asked for" in line


def test_it_stands_beside_trees_in_the_comparison_and_is_no_teacher_by_gain(lines: Path, tmp_path: Path) -> None:
    trees = tmp_path / "trees"
    succeed(
        "plan", "--quiet", "--strategy", "single", "--holdout-fraction", "0.3", "--n-folds", "3", "--n-estimators",
        "10", *NO_ANALYSES, DEMO, trees,
    )  # fmt: skip
    train_all(trees)
    succeed("consolidate", "--quiet", trees)
    succeed("evaluate", "--quiet", trees)
    compared = succeed("evaluate", "--json", "--against", str(lines), trees).json
    assert [r["strategy"] for r in compared["runs"]] == ["single", "incremental"]
    refused = start("distill", "--plan-only", lines, tmp_path / "student")
    assert refused.code == 3
    assert "it has no trees" in refused.err
