"""An ensemble of the instances that there are: on request only, honest about what it lacks, whole again when asked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import metabatch
from tests.conftest import DEMO, NO_ANALYSES, plan_of, start, succeed


@pytest.fixture
def lacking(ensemble: Path, copy_of: Callable[[Path], Path]) -> Path:
    """Three instances of which number 1 never came to an end."""
    run = copy_of(ensemble)
    (run / "instances/01/done.json").unlink()
    return run


def test_a_missing_instance_is_an_error_unless_it_is_allowed(lacking: Path) -> None:
    refused = start("consolidate", lacking)
    assert refused.code == 3
    assert "1 of 3 instances cannot be used: instance 1" in refused.err
    assert not (lacking / "ensemble").exists()
    made = succeed("consolidate", "--allow-missing", lacking)
    assert "2 member(s)" in made.out
    assert "WITHOUT instance 1" in made.out
    assert "WARNING instance 1 is left out: not done (no done.json)" in made.err
    assert "already consolidated" in succeed("consolidate", "--allow-missing", lacking).out


def test_that_it_lacks_an_instance_is_said_by_everything_made_of_it(lacking: Path, tmp_path: Path) -> None:
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    bundle = json.loads((lacking / "ensemble/bundle.json").read_text())
    assert bundle["missing"] == [1]
    assert [m["index"] for m in bundle["members"]] == [0, 2]
    assignments = pl.read_parquet(lacking / "assignments.parquet")
    kept = assignments.filter(pl.col("instance") != 1)["gene_id"].unique()
    assert set(pl.read_parquet(lacking / "ensemble/ledger.parquet")["gene_id"]) == set(kept)
    said = succeed("evaluate", lacking)
    assert "LACKS instance 1" in said.out
    report = (lacking / "evaluation/report.html").read_text()
    gone = assignments["gene_id"].n_unique() - len(kept)
    assert f"made without instance 1 of 3 (--allow-missing): {gone} of 37 training genes" in report
    assert f"coverage {len(kept) / 37:.0%}" in report
    assert json.loads((lacking / "evaluation/metrics.json").read_text())["missing_instances"] == [1]
    predicted = start("predict", lacking, DEMO, tmp_path / "out")
    assert "made without instance 1 of 3" in predicted.err
    assert pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).metadata[b"missing_instances"] == b"1"


def test_genes_of_the_missing_instance_are_scored_by_members_that_never_saw_them(lacking: Path) -> None:
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    succeed("evaluate", "--quiet", lacking)
    model = metabatch.load(lacking)
    genes = pl.read_parquet(lacking / "genes.parquet")
    trained = pl.read_parquet(lacking / "assignments.parquet").filter(pl.col("instance") != 1)
    unit = dict(zip(genes["gene_id"], genes["split_group"], strict=True))
    seen = {unit[g] for g in trained["gene_id"]}
    free = [g for g in genes["gene_id"] if unit[g] not in seen]
    assert free
    found = pl.read_parquet(lacking / "evaluation/predictions.parquet")
    # Genes of the missing instance of whose locus both others trained on genes: nobody can be asked.
    by_locus = trained.with_columns(locus=pl.col("gene_id").replace_strict(unit)).group_by("locus")
    both = set(by_locus.agg(pl.col("instance").n_unique()).filter(pl.col("instance") == 2)["locus"])
    lost = {g for g in genes["gene_id"] if g not in set(trained["gene_id"]) and unit[g] in both}
    assert lost
    assert set(found["gene_id"]) == set(genes["gene_id"]) - lost
    how = json.loads((lacking / "evaluation/metrics.json").read_text())["how"]
    assert how.startswith(f"all genes but {len(lost)} that no member can be asked about")
    plan = plan_of(lacking)
    shards = [pl.read_parquet(DEMO / s["name"]) for s in plan["dataset"]["shards"]]
    rows = pl.concat(shards, how="diagonal").filter(pl.col("gene_id") == free[0])
    rows = rows.with_columns(pl.col("^[0-9]mer_.*$").fill_null(0))
    own = found.filter(pl.col("gene_id") == free[0]).select("neither_meta", "donor_meta", "acceptor_meta").to_numpy()
    order = [list(model.classes_).index(name) for name in ("neither", "donor", "acceptor")]
    assert model.bundle.combination.method == "mean"
    assert np.abs(own - model.predict_proba(rows)[:, order]).max() < 1e-6


def test_with_the_instance_it_becomes_whole_and_equal_to_one_that_never_lacked_it(
    ensemble: Path, lacking: Path, tmp_path: Path
) -> None:
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    shutil.copy(ensemble / "instances/01/done.json", lacking / "instances/01/done.json")
    # What was made of two goes on being the ensemble of two, until consolidate is asked again.
    assert "LACKS instance 1" in succeed("evaluate", lacking).out
    assert "WITHOUT" not in succeed("consolidate", lacking).out
    never = tmp_path / "never"
    shutil.copytree(ensemble, never)
    succeed("consolidate", "--quiet", "--allow-missing", never)
    for run in (lacking, never):
        assert json.loads((run / "ensemble/bundle.json").read_text())["missing"] == []
    assert (lacking / "ensemble/bundle.json").read_bytes() == (never / "ensemble/bundle.json").read_bytes()
    assert "LACKS" not in succeed("evaluate", lacking).out


def test_an_instance_that_is_left_out_is_named_with_what_is_wrong_with_it(
    ensemble: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(ensemble)
    (run / "instances/02/model/donor.ubj").write_bytes(b"")
    said = start("consolidate", "--quiet", "--allow-missing", run).err
    assert "WARNING instance 2 is left out: model/donor.ubj differs from done.json: 0 bytes" in said
    assert "instance 0" not in said


def stages(run: Path) -> list[str]:
    """What submit would submit."""
    return re.findall(r"jobs/([a-z]+)\.sh", succeed("submit", "--dry-run", run).out)


def states(run: Path) -> tuple[str, str, list[int]]:
    found = succeed("status", "--json", run).json
    return found["ensemble"], found["evaluation"], found["lacks"]


def test_status_and_submit_know_what_the_ensemble_lacks_and_when_it_is_behind(ensemble: Path, lacking: Path) -> None:
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    assert states(lacking) == ("done", "pending", [1])
    to_be_whole = f"for an ensemble with instance 1 too: bin/train-instance {lacking} 1 "
    said = succeed("status", lacking).out
    assert f"next: bin/evaluate {lacking}; {to_be_whole}" in said
    succeed("evaluate", "--quiet", lacking)
    said = succeed("status", lacking).out
    assert "ensemble done (made without instance 1), evaluation done\n" in said
    assert "next: nothing: open" in said
    assert to_be_whole in said
    assert stages(lacking) == ["train", "consolidate", "evaluate"]
    shutil.copy(ensemble / "instances/01/done.json", lacking / "instances/01/done.json")
    assert states(lacking) == ("stale", "stale", [1])
    said = succeed("status", lacking).out
    assert "ensemble stale (made without instance 1; instance 1 is done since)" in said
    assert f"next: bin/consolidate {lacking}\n" in said
    assert "consolidate is done again: made without instance 1" in succeed("submit", "--dry-run", lacking).out
    assert stages(lacking) == ["consolidate", "evaluate"]
    succeed("consolidate", "--quiet", lacking)
    assert states(lacking) == ("done", "stale", [])
    said = succeed("status", lacking).out
    assert "ensemble done, evaluation stale (of another ensemble than the one in the run)" in said
    assert f"next: bin/evaluate {lacking}\n" in said
    assert stages(lacking) == ["evaluate"]
    succeed("evaluate", "--quiet", lacking)
    assert states(lacking) == ("done", "done", [])
    assert succeed("submit", "--dry-run", lacking).out == "nothing to submit\n"


def test_an_ensemble_of_instances_that_were_trained_anew_is_stale(
    ensemble: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(ensemble)
    succeed("consolidate", "--quiet", run)
    marker = run / "instances/00/done.json"
    before = marker.read_bytes()
    (run / "instances/00/model/donor.ubj").write_bytes(b"")
    assert states(run) == ("done", "pending", [])  # it has that model itself
    assert f"next: bin/train-instance {run} 0 " in succeed("status", run).out
    succeed("train-instance", "--quiet", run, "0")
    assert marker.read_bytes() != before
    assert states(run) == ("stale", "pending", [])
    assert "ensemble stale (instance 0 was trained anew since)" in succeed("status", run).out
    assert stages(run) == ["consolidate", "evaluate"]


def test_when_none_is_usable_it_is_an_error_all_the_same(lacking: Path) -> None:
    for index in (0, 2):
        (lacking / f"instances/{index:02d}/model/donor.ubj").write_bytes(b"")
    refused = start("consolidate", "--allow-missing", lacking)
    assert refused.code == 3
    assert "3 of 3 instances cannot be used" in refused.err


def test_a_comparison_says_so_too(lacking: Path, ensemble: Path, tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    shutil.copytree(ensemble, complete)
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    for run in (lacking, complete):
        succeed("consolidate", "--quiet", "--allow-missing", run)
        succeed("evaluate", "--quiet", run)
    compared = succeed("evaluate", "--against", str(lacking), complete)
    assert f"{lacking.name}: made without instance 1 of 3 (--allow-missing)" in compared.out


def test_a_student_is_taught_every_gene_by_the_others_or_refused(lacking: Path, tmp_path: Path) -> None:
    succeed("consolidate", "--quiet", "--allow-missing", lacking)
    refused = start("distill", "--plan-only", lacking, tmp_path / "none")
    assert refused.code == 3
    assert "nobody can teach 2 gene(s)" in refused.err
    assert not (tmp_path / "none").exists()
    run, student = tmp_path / "run", tmp_path / "student"
    succeed(
        "plan", "--quiet", "--strategy", "multi-instance", "--split-column", "gene_id", "--n-folds", "2",
        "--n-estimators", "3", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run,
    )  # fmt: skip
    for index in ("0", "2"):
        succeed("train-instance", "--quiet", run, index)
    succeed("consolidate", "--quiet", "--allow-missing", run)
    planned = start("distill", "--plan-only", run, student)
    assert planned.code == 0
    assert "made without instance 1 of 3" in planned.err
    assert plan_of(student)["teacher"]["members"] == 2
    assert plan_of(student)["teacher"]["missing"] == [1]
    assert "without instance 1, --allow-missing" in planned.out
    training = pl.read_parquet(run / "genes.parquet").filter(pl.col("split") == "train")["gene_id"]
    assert set(pl.read_parquet(student / "soft_labels.parquet")["gene_id"]) == set(training)
