"""`predict` and `metabatch.load`: one interface, exact names, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import metabatch
from metabatch.analysis.scored import best_thresholds, load_out_of_fold, load_scored, resampling_units
from metabatch.errors import InputError, UsageError
from metabatch.metrics.thresholds import at_threshold
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from tests.conftest import DEMO, small_table, start, succeed, write_table

CLASSES = ("neither", "donor", "acceptor")


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return pl.read_parquet(DEMO / "positions-00000.parquet")


def test_predict_writes_every_row_with_ids_scores_and_probabilities(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = succeed("predict", "--quiet", trained, DEMO, out).out
    assert "16,392 rows in 4 part(s)" in said
    written = pl.read_parquet(out / "part-*.parquet")
    source = pl.concat([pl.read_parquet(f) for f in sorted(DEMO.glob("*.parquet"))], how="diagonal")
    assert written["gene_id"].to_list() == source["gene_id"].to_list()
    assert written["position"].to_list() == source["position"].to_list()
    assert (written["donor_score"] == source["donor_score"]).all()
    total = written.select(pl.sum_horizontal("neither_meta", "donor_meta", "acceptor_meta")).to_series()
    assert (total - 1).abs().max() < 1e-5
    meta = pq.read_schema(next(out.glob("part-*.parquet"))).metadata
    assert meta[b"model_fingerprint"]
    assert "already predicted" in succeed("predict", "--quiet", trained, DEMO, out).out


def test_api_equals_the_command_for_every_kind_of_frame(trained: Path, tmp_path: Path, frame: pl.DataFrame) -> None:
    model = metabatch.load(trained)
    assert list(model.classes_) == ["acceptor", "donor", "neither"]  # sorted: scikit-learn's scorers rely on it
    proba = model.predict_proba(frame)
    assert proba.shape == (frame.height, 3)
    assert np.allclose(proba.sum(axis=1), 1)
    assert np.array_equal(proba, model.predict_proba(frame.to_arrow()))
    shuffled = frame.select(sorted(frame.columns, reverse=True))
    assert np.array_equal(proba, model.predict_proba(shuffled))
    assert np.array_equal(proba, model.predict_proba(frame.select(model.feature_names).to_pandas()))
    assert np.array_equal(proba, model.predict_proba(frame.select(model.feature_names).to_numpy().astype(np.float32)))
    assert set(model.predict(frame)) <= {"neither", "donor", "acceptor"}
    succeed("predict", "--quiet", trained, DEMO / "positions-00000.parquet", tmp_path / "out")
    written = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    for code, name in enumerate(model.classes_):
        assert np.array_equal(written[f"{name}_meta"].to_numpy(), proba[:, code].astype(np.float32))


def test_a_copied_bundle_and_the_pickle_are_the_same_model(trained: Path, tmp_path: Path, frame: pl.DataFrame) -> None:
    proba = metabatch.load(trained).predict_proba(frame)
    bundle = Path(shutil.copytree(trained / "ensemble", tmp_path / "bundle"))
    assert np.array_equal(metabatch.load(bundle).predict_proba(frame), proba)
    pickled = pickle.loads((bundle / "model.pkl").read_bytes())
    assert np.array_equal(pickled.predict_proba(frame), proba)


def test_an_altered_bundle_is_not_loaded(trained: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained / "ensemble", tmp_path / "bundle"))
    model = bundle / "members" / "00" / "donor.ubj"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"members/00/donor.ubj differs"):
        metabatch.load(bundle)


def test_missing_features_are_named_and_kmers_filled_only_when_asked(trained: Path, tmp_path: Path) -> None:
    data = DEMO / "positions-00002.parquet"  # lacks 3mer_CGA and 3mer_TCG
    outcome = start("predict", trained, data, tmp_path / "out")
    assert outcome.code == 3
    assert "3mer_CGA, 3mer_TCG" in outcome.err
    assert "--fill-missing-kmers" in outcome.err
    assert not (tmp_path / "out").exists()
    succeed("predict", "--quiet", "--fill-missing-kmers", trained, data, tmp_path / "out")
    # In the whole folder the columns exist: absent from one shard, they count as 0, as in training.
    succeed("predict", "--quiet", trained, DEMO, tmp_path / "all")
    filled = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    whole = pl.read_parquet(tmp_path / "all" / "part-*.parquet")
    joined = filled.join(whole, on=["gene_id", "position"], suffix="_whole")
    assert joined.height == filled.height
    assert (joined["donor_meta"] == joined["donor_meta_whole"]).all()
    without = pl.read_parquet(data).drop("donor_max_up300")
    with pytest.raises(InputError, match="donor_max_up300"):
        metabatch.load(trained, fill_missing_kmers=True).predict_proba(without)


def test_features_that_some_files_lack_are_told(trained: Path, tmp_path: Path) -> None:
    said = start("predict", "--quiet", trained, DEMO, tmp_path / "out").err
    assert (
        "WARNING 2 feature(s) are absent from 1 of 4 files and filled there as in training: 3mer_CGA, 3mer_TCG" in said
    )
    data = Path(shutil.copytree(DEMO, tmp_path / "data"))
    frame = pl.read_parquet(data / "positions-00000.parquet")
    gone = [f"base_{side}{i}" for side in "mp" for i in range(1, 4)]
    frame.drop(gone).write_parquet(data / "positions-00000.parquet")
    said = start("predict", "--quiet", trained, data, tmp_path / "other").err
    assert "8 feature(s) are absent from 2 of 4 files" in said
    assert sum(name in said for name in (*gone, "3mer_CGA", "3mer_TCG")) == 5
    assert start("predict", "--quiet", trained, DEMO / "positions-00000.parquet", tmp_path / "one").err == ""
    assert start("predict", "--quiet", "--mode", "base_only", trained, data, tmp_path / "base").err == ""


def test_a_folder_with_other_files_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    outcome = start("predict", trained, DEMO, tmp_path)
    assert outcome.code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_force_never_touches_what_predict_did_not_write(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = sorted((run / "ensemble").rglob("*"))
    outcome = start("predict", "--force", run, DEMO, run / "ensemble")
    assert outcome.code == 3
    assert sorted((run / "ensemble").rglob("*")) == before
    (tmp_path / "notes.txt").write_text("mine")
    assert start("predict", "--force", run, DEMO, tmp_path).code == 3


def test_other_data_needs_force_and_replaces_earlier_predictions_only_when_complete(
    trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeed("predict", "--quiet", trained, DEMO, out)
    one = tmp_path / "one.parquet"
    shutil.copy(DEMO / "positions-00000.parquet", one)
    refused = start("predict", trained, one, out)
    assert refused.code == 3
    assert "other data" in refused.err
    odd = pl.read_parquet(one).with_columns(donor_score=pl.lit(float("inf"), pl.Float32))
    odd.write_parquet(tmp_path / "odd.parquet")
    assert start("predict", "--force", trained, tmp_path / "odd.parquet", out).code == 3
    assert "already predicted" in succeed("predict", "--quiet", trained, DEMO, out).out  # the old ones still stand
    succeed("predict", "--quiet", "--force", trained, one, out)
    assert {p.name for p in out.iterdir()} == {"part-00000.parquet", "provenance.json", "done.json"}
    assert pl.read_parquet(out / "part-00000.parquet").height == odd.height


def test_data_without_the_group_column_is_predicted_with_a_warning(trained: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(DEMO / "positions-00000.parquet").drop("gene_id")
    frame.write_parquet(tmp_path / "data.parquet")
    said = succeed("predict", "--quiet", trained, tmp_path / "data.parquet", tmp_path / "out").err
    assert "no column gene_id" in said


def test_arrays_of_another_width_and_foreign_types_are_refused(trained: Path) -> None:
    model = metabatch.load(trained)
    with pytest.raises(UsageError, match=r"array of shape \(2, 3\)"):
        model.predict_proba(np.zeros((2, 3)))
    with pytest.raises(UsageError, match="cannot predict on list"):
        model.predict_proba([[1.0]])


def test_calls_are_the_written_scores_at_the_thresholds_of_the_bundle(trained: Path, tmp_path: Path) -> None:
    thresholds = json.loads((trained / "ensemble" / "bundle.json").read_text())["thresholds"]
    run = RunDir(trained)
    assert thresholds == best_thresholds(load_out_of_fold(run, open_plan(run)), CLASSES)
    succeed("predict", "--quiet", trained, DEMO, tmp_path / "out")
    written = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    for name in CLASSES:
        assert written[f"{name}_call"].dtype == pl.Boolean
        assert (written[f"{name}_call"] == (written[f"{name}_meta"] >= thresholds[name])).all()
    assert 0 < written["donor_call"].sum() < written.height


def test_the_threshold_is_judged_on_genes_that_did_not_choose_it(trained: Path) -> None:
    metrics = json.loads((trained / "evaluation" / "metrics.json").read_text())
    bundle = json.loads((trained / "ensemble" / "bundle.json").read_text())
    rows = pl.read_parquet(trained / "evaluation" / "predictions.parquet")
    positive, weight = (rows["label"] == "donor").to_numpy(), rows["weight"].to_numpy()
    expected = at_threshold(rows["donor_meta"].to_numpy(), positive, weight, bundle["thresholds"]["donor"])
    found = metrics["meta"]["donor"]["at_threshold"]
    assert found == pytest.approx(expected)
    assert 0 < found["f1"] < 1
    assert "at_threshold" not in metrics["out_of_fold"]["meta"]["donor"]


def test_thresholds_of_an_ensemble_come_from_members_that_did_not_train_on_the_genes(
    ensemble: Path, copy_of: Callable[[Path], Path]
) -> None:
    copy = copy_of(ensemble)
    succeed("consolidate", "--quiet", copy)
    succeed("evaluate", "--quiet", copy)  # without a holdout: the same scores, of all genes
    run = RunDir(copy)
    plan = open_plan(run)
    genes = pl.read_parquet(copy / "ensemble" / "combination_genes.parquet")["gene_id"]
    groups = resampling_units(run, plan)
    rows = load_scored(copy / "evaluation" / "predictions.parquet", plan.columns, groups, genes=genes)
    assert 25 < len(rows.gene_names) == len(genes) <= 37
    bundle = json.loads((copy / "ensemble" / "bundle.json").read_text())
    assert bundle["thresholds"] == best_thresholds(rows, CLASSES)
    metrics = json.loads((copy / "evaluation" / "metrics.json").read_text())
    assert all("at_threshold" not in m for m in metrics["meta"].values())


def test_a_bundle_of_before_thresholds_predicts_without_calls(trained: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained / "ensemble", tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["thresholds"]
    raw = json.dumps(manifest).encode()
    (bundle / "bundle.json").write_bytes(raw)
    done = json.loads((bundle / "done.json").read_text())
    done["files"]["bundle.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (bundle / "done.json").write_text(json.dumps(done))
    said = succeed("predict", bundle, DEMO, tmp_path / "out").err
    assert "no thresholds" in said
    written = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert "donor_meta" in written.columns
    assert not [c for c in written.columns if c.endswith("_call")]


def test_without_cross_validation_there_are_no_thresholds_and_predict_says_so(tmp_path: Path) -> None:
    data, run = write_table(tmp_path / "data", small_table()), tmp_path / "run"
    succeed("run-all", "--quiet", "--holdout-fraction", "0.3", "--n-folds", "0", "--calibration", "none",
            "--n-estimators", "5", "--early-stopping-patience", "0", data, run)  # fmt: skip
    assert json.loads((run / "ensemble" / "bundle.json").read_text())["thresholds"] == {}
    assert "no thresholds" in succeed("predict", run, data, tmp_path / "out").err
    assert "donor_call" not in pl.read_parquet(tmp_path / "out" / "part-*.parquet").columns
