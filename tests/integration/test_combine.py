"""consolidate chooses how members are combined; evaluate and the estimator follow it, honestly."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.calibration import CalibrationDisplay
from sklearn.inspection import permutation_importance
from sklearn.metrics import accuracy_score, average_precision_score, get_scorer, roc_auc_score
from sklearn.utils.validation import check_is_fitted

import metabatch
from metabatch.analysis.figures import new_axes
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import UsageError
from metabatch.models.pooling import pool
from metabatch.options import COMBINATIONS
from metabatch.rundir.bundle import Combination
from metabatch.rundir.manifests import Plan, load, save
from tests.conftest import DEMO, NO_ANALYSES, plan_of, start, succeed, train_all

CLASSES = ("neither", "donor", "acceptor")
SORTED = [2, 1, 0]  # the columns of `predict_proba`


PLANNED = (
    "--strategy", "multi-instance", "--min-instances", "4", "--holdout-fraction", "0.3", "--n-folds", "2",
    "--n-estimators", "12", "--learning-rate", "0.3", "--early-stopping-patience", "0", *NO_ANALYSES,
)  # fmt: skip


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members on the demo and a holdout, combined and evaluated; four, so that weights can differ."""
    run = tmp_path_factory.mktemp("members") / "run"
    succeed("plan", "--quiet", *PLANNED, DEMO, run)
    train_all(run)
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)
    return run


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return pl.read_parquet(DEMO / "positions-00000.parquet")


@pytest.fixture(scope="module")
def data() -> pl.DataFrame:
    """All rows; a k-mer column that a shard lacks is 0 there, as in training."""
    whole = pl.concat([pl.read_parquet(f) for f in sorted(DEMO.glob("*.parquet"))], how="diagonal")
    return whole.with_columns(pl.col("^[0-9]mer_.*$").fill_null(0))


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def test_every_rule_is_judged_against_the_mean_and_the_bundle_holds_the_one_taken(members: Path) -> None:
    learned, bundle = read(members, "ensemble/combination.json"), read(members, "ensemble/bundle.json")
    assert [line["method"] for line in learned["judged"]] == list(COMBINATIONS)
    taken = [line for line in learned["judged"] if line["taken"]]
    assert [line["method"] for line in taken] == [bundle["combination"]["method"]] == [learned["rule"]["method"]]
    if taken[0]["method"] != "mean":
        assert taken[0]["difference_ci95"][0] > 0
    genes = pl.read_parquet(members / "ensemble/combination_genes.parquet")
    train = pl.read_parquet(members / "genes.parquet").filter(pl.col("split") == "train")
    assert set(genes["gene_id"]) <= set(train["gene_id"])
    metrics, report = read(members, "evaluation/metrics.json"), (members / "evaluation/report.html").read_text()
    assert metrics["combination"]["judged"] == learned["judged"]
    assert metrics["out_of_instance"] == learned["estimate"]
    assert learned["rows_asked"] == learned["estimate"]["rows"] <= learned["rows_read"]
    assert "How the members are combined" in report
    assert all(f"<td>{name}" in report for name in COMBINATIONS)


def test_a_rule_asked_for_is_what_predictions_and_evaluation_follow(
    members: Path, copy_of: Callable[[Path], Path], frame: pl.DataFrame, data: pl.DataFrame
) -> None:
    run = copy_of(members)
    mean = metabatch.load(run)
    said = succeed("consolidate", "--combine", "stacking", run).out
    assert "stacking (as asked for)" in said
    assert "already" in succeed("consolidate", "--combine", "stacking", run).out
    model = metabatch.load(run)
    rule = model.bundle.combination
    assert rule.method == "stacking"
    own = mean.member_probabilities(frame.to_arrow(), np.ones((4, frame.height), dtype=bool))
    assert np.array_equal(model.predict_proba(frame), pool(own, rule)[:, SORTED])
    succeed("evaluate", "--quiet", run)
    scored = pl.read_parquet(run / "evaluation/predictions.parquet")
    again = pl.concat([data.filter(pl.col("gene_id") == g) for g in scored["gene_id"].unique(maintain_order=True)])
    assert np.array_equal(scored["donor_meta"].to_numpy(), model.predict_proba(again)[:, 1].astype(np.float32))


def test_a_rule_asked_for_stays_until_another_is(members: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(members)
    succeed("consolidate", "--quiet", "--combine", "logit-mean", run)
    succeed("evaluate", "--quiet", run)
    markers = [run / "ensemble/done.json", run / "evaluation/done.json"]
    before = [m.read_bytes() for m in markers]
    succeed("run-all", "--quiet", *PLANNED, DEMO, run)
    assert [m.read_bytes() for m in markers] == before
    assert "logit-mean (as asked for)" in succeed("consolidate", "--force", run).out
    succeed("consolidate", "--quiet", "--combine", "auto", run)
    assert (run / "ensemble/bundle.json").read_bytes() == (members / "ensemble/bundle.json").read_bytes()
    assert "already" in succeed("consolidate", run).out


def test_routing_combines_a_gene_by_the_weights_of_its_kind_in_every_way_of_asking(
    members: Path, copy_of: Callable[[Path], Path], frame: pl.DataFrame, data: pl.DataFrame, tmp_path: Path
) -> None:
    run = copy_of(members)
    assert "routing (as asked for, by gene_length)" in succeed("consolidate", "--combine", "routing", run).out
    model = metabatch.load(run)
    rule = model.bundle.combination
    route = np.searchsorted(rule.edges, frame["gene_length"].to_numpy(), side="right")
    assert len(set(route)) > 1
    own = model.member_probabilities(frame.to_arrow(), np.ones((4, frame.height), dtype=bool))
    expected = np.einsum("nm,mnk->nk", np.array(rule.routes)[route], own)
    expected /= expected.sum(axis=1, keepdims=True)
    proba = model.predict_proba(frame)
    assert np.allclose(proba, expected[:, SORTED])
    assert not np.allclose(proba, metabatch.load(members).predict_proba(frame))
    succeed("evaluate", "--quiet", run)
    scored = pl.read_parquet(run / "evaluation/predictions.parquet")
    again = pl.concat([data.filter(pl.col("gene_id") == g) for g in scored["gene_id"].unique(maintain_order=True)])
    assert np.array_equal(scored["donor_meta"].to_numpy(), model.predict_proba(again)[:, 1].astype(np.float32))
    succeed("predict", "--quiet", run, DEMO / "positions-00000.parquet", tmp_path / "out")
    written = pl.read_parquet(tmp_path / "out/part-*.parquet")
    assert np.array_equal(written["donor_meta"].to_numpy(), proba[:, 1].astype(np.float32))


def test_top_k_does_not_ask_the_members_it_left_out(
    members: Path, copy_of: Callable[[Path], Path], frame: pl.DataFrame
) -> None:
    run = copy_of(members)
    succeed("consolidate", "--quiet", "--combine", "top-k", run)
    model = metabatch.load(run)
    weights = np.array(model.bundle.combination.weights)
    assert set(weights) <= {0.0, 1.0}
    speaks = np.broadcast_to((weights > 0)[:, None], (4, frame.height))
    own = model.member_probabilities(frame.to_arrow(), speaks)
    assert np.isnan(own[weights == 0]).all()
    assert np.array_equal(model.predict_proba(frame), (own[weights > 0].sum(axis=0) / (weights > 0).sum())[:, SORTED])


def test_the_estimate_by_other_members_agrees_with_the_true_holdout(members: Path, data: pl.DataFrame) -> None:
    metrics = read(members, "evaluation/metrics.json")
    for name in ("donor", "acceptor"):  # by the gain: the base model, too, finds the dozen holdout genes easier
        ours, theirs = metrics["difference"][name]["ci95"], metrics["out_of_instance"]["difference"][name]["ci95"]
        assert max(ours[0], theirs[0]) <= min(ours[1], theirs[1])
    # The same genes by all members, those that trained on them too, are too good: the estimate is not of that kind.
    genes = pl.read_parquet(members / "ensemble/combination_genes.parquet")["gene_id"]
    rows = data.filter(pl.col("gene_id").is_in(genes.implode()))
    proba = metabatch.load(members).member_probabilities(rows.to_arrow(), np.ones((4, rows.height), dtype=bool))
    seen, label, weight = proba.mean(axis=0), rows["splice_type"].to_numpy(), rows["sampling_weight"].to_numpy()
    for code, name in ((1, "donor"), (2, "acceptor")):
        highest = metrics["out_of_instance"]["meta"][name]["ci95"]["ap"][1]
        assert average_precision_score(label == name, seen[:, code], sample_weight=weight) > highest


def test_without_a_holdout_each_gene_is_combined_by_a_rule_that_did_not_see_it(
    ensemble: Path, copy_of: Callable[[Path], Path], data: pl.DataFrame
) -> None:
    run = copy_of(ensemble)
    succeed("consolidate", "--quiet", "--combine", "convex", run)
    succeed("evaluate", "--quiet", run)
    learned = read(run, "ensemble/combination.json")
    fold = dict(pl.read_parquet(run / "ensemble/combination_genes.parquet").iter_rows())
    trained_on = pl.read_parquet(run / "assignments.parquet")
    units = dict(pl.read_parquet(run / "genes.parquet").select("gene_id", "split_group").iter_rows())
    scored = pl.read_parquet(run / "evaluation/predictions.parquet")
    model = metabatch.load(run)
    tried = 0
    for gene in sorted(fold)[::4]:
        busy = {i for i, g in trained_on.select("instance", "gene_id").iter_rows() if units[g] == units[gene]}
        rows = data.filter(pl.col("gene_id") == gene)
        speaks = np.array([[m.index not in busy] * rows.height for m in model.bundle.members])
        rule = learned["crossed"][fold[gene]]
        own = model.member_probabilities(rows.to_arrow(), speaks)
        expected = pool(own, Combination(method="convex", weights=tuple(rule["weights"])))
        found = scored.filter(pl.col("gene_id") == gene)["acceptor_meta"].to_numpy()
        assert np.array_equal(found, expected[:, 2].astype(np.float32))
        tried += 1
    assert tried > 5


def test_a_data_set_that_changed_after_training_teaches_no_rule(
    members: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    run, data = copy_of(members), Path(shutil.copytree(DEMO, tmp_path / "data"))
    shard = min(data.glob("*.parquet"))
    pl.read_parquet(shard).with_columns(donor_score=pl.lit(0.5, pl.Float32)).write_parquet(shard)
    plan = load(run / "plan.json", Plan)
    moved = msgspec.structs.replace(plan.dataset, path=str(data))  # the seal does not cover the place
    save(run / "plan.json", msgspec.structs.replace(plan, dataset=moved))
    before = (run / "ensemble/done.json").read_bytes()
    refused = start("consolidate", "--force", run)
    assert refused.code == 3
    assert "changed since the plan was made" in refused.err
    assert (run / "ensemble/done.json").read_bytes() == before


def test_one_model_has_nothing_to_combine_and_says_so(trained: Path) -> None:
    assert read(trained, "ensemble/bundle.json")["combination"]["note"] == "nothing to learn from: there is one member"
    refused = start("consolidate", "--combine", "convex", trained)
    assert refused.code == 3
    assert "there is one member" in refused.err
    assert "some of them left out by two members or more" in refused.err
    assert (trained / "ensemble/done.json").is_file()
    assert start("consolidate", "--combine", "best", trained).code == 2
    assert not any("fits the budget too" in w for w in plan_of(trained)["warnings"])  # advice for ensembles only


def test_scikit_learns_tools_take_the_loaded_model(members: Path, frame: pl.DataFrame) -> None:
    model = metabatch.load(members)
    check_is_fitted(model)
    table, label = frame.select(model.feature_names).to_pandas(), frame["splice_type"].to_numpy()
    assert model.score(table, label) == accuracy_score(label, model.predict(table))
    assert list(model.feature_names_in_) == model.feature_names
    found = permutation_importance(model, table.head(300), label[:300], n_repeats=1, random_state=0, scoring="accuracy")
    assert found.importances_mean.shape == (model.n_features_in_,)
    proba = model.predict_proba(table)
    assert list(model.classes_) == sorted(CLASSES)
    by_hand = [roc_auc_score(label == name, proba[:, code]) for code, name in enumerate(model.classes_)]
    assert get_scorer("roc_auc_ovr")(model, table, label) == pytest.approx(np.mean(by_hand))
    assert get_scorer("neg_log_loss")(model, table, label) == pytest.approx(
        np.log(proba[np.arange(len(label)), np.searchsorted(model.classes_, label)]).mean()
    )
    donors = model.one_vs_rest("donor")
    check_is_fitted(donors)
    _, axes = new_axes()  # without one scikit-learn opens a figure of pyplot's, which stays open
    display = CalibrationDisplay.from_estimator(donors, table, label == "donor", n_bins=5, ax=axes)
    assert np.array_equal(display.y_prob, model.predict_proba(frame)[:, 1])
    with pytest.raises(UsageError, match="intron"):
        model.one_vs_rest("intron")
    with pytest.raises(UsageError, match="cannot be fitted"):
        model.fit(table, label)


def test_a_pickled_model_predicts_the_same_bits(members: Path, frame: pl.DataFrame) -> None:
    model = metabatch.load(members)
    again = pickle.loads(pickle.dumps(model))
    assert isinstance(again, MetaModel)
    assert np.array_equal(again.predict_proba(frame), model.predict_proba(frame))
