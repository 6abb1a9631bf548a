"""A student: taught by members that did not train on a gene, on the teacher's genes, in an ordinary run directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import xgboost as xgb

import metabatch
from metabatch.data.matrices import as_matrix
from metabatch.rundir.fingerprint import plan_fingerprint, plan_seal
from metabatch.rundir.manifests import Plan, load, save
from metabatch.rundir.publish import sha256_file
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

CLASSES = ("neither", "donor", "acceptor")
FEW = (
    "--n-folds", "2", "--n-estimators", "15", "--learning-rate", "0.3", "--early-stopping-patience", "0", *NO_ANALYSES,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    succeed(
        "plan", "--quiet", "--strategy", "multi-instance", "--holdout-fraction", "0.3", "--exclude-features",
        "3mer_AAA", *FEW, DEMO, run,
    )  # fmt: skip
    train_all(run)
    succeed("consolidate", "--quiet", run)
    return run


@pytest.fixture(scope="module")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The student, and what distill printed."""
    run = tmp_path_factory.mktemp("student") / "run"
    done = succeed("distill", "--quiet", "--analyses", "overfitting", teacher, run)
    return run, done.out


@pytest.fixture(scope="module")
def student(distilled: tuple[Path, str]) -> Path:
    return distilled[0]


def rows_of(gene: str, plan: dict[str, Any]) -> pl.DataFrame:
    """A gene's rows in the order of the data set: shards by content, as the plan lists them."""
    shards = [pl.read_parquet(DEMO / s["name"]) for s in plan["dataset"]["shards"]]
    return pl.concat([s.filter(pl.col("gene_id") == gene) for s in shards], how="diagonal")


def soft_labels(run: Path, gene: str) -> np.ndarray:
    table = pl.read_parquet(run / "soft_labels.parquet").filter(pl.col("gene_id") == gene)
    return table.select(f"{c}_soft" for c in CLASSES).to_numpy()


def taught(said: np.ndarray, gene: str, plan: dict[str, Any], share: float = 0.9) -> np.ndarray:
    """Soft labels of a gene of which the teacher says `said`, with the usual part of the true label."""
    label = rows_of(gene, plan)["splice_type"].to_list()
    return share * np.eye(3)[[CLASSES.index(name) for name in label]] + (1 - share) * said


def members_without(run: Path, gene: str) -> list[int]:
    """Instances that trained on no gene of its locus."""
    genes = pl.read_parquet(run / "genes.parquet")
    locus = genes.filter(pl.col("gene_id") == gene)["split_group"][0]
    mates = genes.filter(pl.col("split_group") == locus)["gene_id"]
    trained = pl.read_parquet(run / "assignments.parquet").filter(pl.col("gene_id").is_in(mates.implode()))["instance"]
    return sorted({0, 1, 2} - set(trained))


def shares_of_gain(run: Path) -> pl.DataFrame:
    """name, gain: each feature's part of the gain of all splits, the classes of all members alike; largest first."""
    shares = []
    files = sorted((run / "ensemble/members").glob("*/*.ubj"))
    for file in files:
        nodes = [
            json.loads(tree) for tree in xgb.Booster(model_file=file).get_dump(dump_format="json", with_stats=True)
        ]
        splits = []
        while nodes:
            node = nodes.pop()
            if "children" in node:
                splits.append({"name": node["split"], "gain": node["gain"]})
                nodes += node["children"]
        shares.append(pl.DataFrame(splits).with_columns(pl.col("gain") / pl.col("gain").sum() / len(files)))
    return pl.concat(shares).group_by("name").agg(pl.col("gain").sum()).sort("gain", descending=True)


def features_of(run: Path) -> list[str]:
    return [f["name"] for f in json.loads((run / "features.json").read_text())["features"]]


def test_a_student_has_the_features_that_carry_most_of_the_teachers_gain(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    gains = shares_of_gain(teacher)
    carried = gains["gain"].cum_sum()
    for run, share in ((student, 0.95), (tmp_path / "half", 0.5)):
        if run != student:
            succeed("distill", "--plan-only", "--quiet", "--gain-share", "0.5", teacher, run)
        ours = features_of(run)
        assert set(ours) == set(gains["name"].head(max(100, int((carried < share).sum()) + 1)))
        assert len(ours) > 100 or run != student
        assert ours == [name for name in features_of(teacher) if name in set(ours)]
        reasons = {e["name"]: e["reason"] for e in json.loads((run / "features.json").read_text())["excluded"]}
        assert set(features_of(teacher)) - set(ours) <= set(reasons)
        left = next(name for name in features_of(teacher) if name not in ours)
        assert reasons[left] == f"not among the features that carry {share} of the gain of the teacher's splits"
        assert plan_of(run)["teacher"]["gain_share"] == share
    model = metabatch.load(student)
    assert model.feature_names == features_of(student)
    assert "--gain-share 0.5" in start("distill", "--plan-only", "--quiet", teacher, tmp_path / "half").err
    for wrong in ("0", "1.01", "nan", "most"):
        assert start("distill", "--gain-share", wrong, teacher, tmp_path / "none").code == 2
    assert not (tmp_path / "none").exists()


def test_a_student_has_the_teachers_genes_and_options_and_on_request_all_its_features_and_room_for_its_labels(
    teacher: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    succeed("distill", "--plan-only", "--quiet", "--gain-share", "1", teacher, student)
    theirs, ours = plan_of(teacher), plan_of(student)
    columns = ("gene_id", "rows", "split")
    genes = [pl.read_parquet(run / "genes.parquet").select(columns) for run in (teacher, student)]
    assert genes[0].equals(genes[1])
    assert 0 < genes[0].filter(pl.col("split") == "holdout").height < genes[0].height
    sets = [json.loads((run / "features.json").read_text()) for run in (teacher, student)]
    assert features_of(teacher) == features_of(student)
    assert {e["name"]: e["reason"] for e in sets[0]["excluded"]} == {
        e["name"]: e["reason"] for e in sets[1]["excluded"]
    }
    for name in ("n_estimators", "learning_rate", "n_folds", "early_stopping_patience", "seed"):
        assert ours["options"][name] == theirs["options"][name]
    assert ours["options"]["max_depth"] == max(3, theirs["options"]["max_depth"] - 2)
    succeed("distill", "--plan-only", "--quiet", "--max-depth", "7", teacher, tmp_path / "deep")
    assert plan_of(tmp_path / "deep")["options"]["max_depth"] == 7
    assert ours["strategy"] == "single"
    assert {a["strategy"] for a in ours["alternatives"]} == {"single", "external"}
    assert ours["teacher"]["fingerprint"] == theirs["fingerprint"]
    assert ours["teacher"]["members"] == 3
    assert ours["tables"]["soft_labels.parquet"] == sha256_file(student / "soft_labels.parquet")
    for name in ("building_row_bytes", "row_bytes", "scoring_row_bytes"):
        assert ours["memory_law"][name] == theirs["memory_law"][name] + 4 * len(CLASSES)


def test_every_training_gene_is_taught_by_members_that_did_not_train_on_its_locus(teacher: Path, student: Path) -> None:
    plan, model = plan_of(teacher), metabatch.load(teacher)
    training = pl.read_parquet(teacher / "genes.parquet").filter(pl.col("split") == "train")
    table = pl.read_parquet(student / "soft_labels.parquet")
    counts = table.group_by("gene_id").len().sort("gene_id")
    assert counts.rows() == training.select("gene_id", "rows").sort("gene_id").rows()
    assert model.bundle.combination.method == "mean"
    by_others = [g for g in training["gene_id"] if len(members_without(teacher, g)) == 1]
    by_folds = [g for g in training["gene_id"] if not members_without(teacher, g)]
    assert by_others
    assert by_folds
    for gene in by_others[:2]:
        rows = rows_of(gene, plan).to_arrow()
        matrix = as_matrix(model.preprocessor.transform(rows, where="test"))
        said = [m.predict_proba(matrix) for m in model.members]
        own = np.mean([said[i] for i in members_without(teacher, gene)], axis=0)
        assert np.abs(soft_labels(student, gene) - taught(own, gene, plan)).max() < 1e-6
        assert np.abs(soft_labels(student, gene) - taught(np.mean(said, axis=0), gene, plan)).max() > 5e-5
    roles = pl.read_parquet(teacher / "assignments.parquet").filter(pl.col("role") == "core")
    for gene in by_folds[:2]:
        home = roles.filter(pl.col("gene_id") == gene)["instance"][0]
        oof = pl.read_parquet(teacher / f"instances/{home:02d}/oof.parquet").filter(pl.col("gene_id") == gene)
        said = oof.select(f"{c}_meta" for c in CLASSES).to_numpy()
        assert np.abs(soft_labels(student, gene) - taught(said, gene, plan)).max() < 1e-6


def test_the_part_of_the_true_label_is_an_option_and_part_of_what_the_student_is(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for wrong in ("1", "-0.1", "half"):
        assert start("distill", "--label-share", wrong, teacher, run).code == 2
    assert not run.exists()
    succeed("distill", "--plan-only", "--quiet", "--label-share", "0", teacher, run)
    plan = plan_of(teacher)
    gene = next(g for g in pl.read_parquet(run / "soft_labels.parquet")["gene_id"] if not members_without(teacher, g))
    home = pl.read_parquet(teacher / "assignments.parquet").filter(pl.col("gene_id") == gene, pl.col("role") == "core")
    oof = pl.read_parquet(teacher / f"instances/{home['instance'][0]:02d}/oof.parquet").filter(
        pl.col("gene_id") == gene
    )
    said = oof.select(f"{c}_meta" for c in CLASSES).to_numpy()
    assert np.abs(soft_labels(run, gene) - taught(said, gene, plan, 0)).max() < 1e-6
    assert "--label-share 0.9" in start("distill", "--plan-only", "--quiet", teacher, run).err


def test_the_size_is_the_fewest_trees_within_the_loss_of_ap(student: Path) -> None:
    metrics = json.loads((student / "instances/00/metrics.json").read_text())
    assert set(metrics["sizes"]) == set(CLASSES)
    model = metabatch.load(student)
    for name, found in metrics["sizes"].items():
        within = [n for n, ap in zip(found["trees"], found["ap"], strict=True) if ap >= max(found["ap"]) - 0.002]
        assert found["chosen"] == min(within) == metrics["trees"][name]
        assert model.members[0].boosters[name].num_boosted_rounds() == found["chosen"]
        folds = metrics["classes"][name]["folds"]
        # Out-of-fold scores, by which the model is calibrated, are of models of the size that is delivered.
        assert [f["best_rounds"] for f in folds] == [found["chosen"]] * len(folds)
        fold = next(f for f in folds if f["fold"] == found["fold"])
        assert fold["trained_rounds"] >= found["trees"][-1] >= found["chosen"]
        assert [f["trained_rounds"] for f in folds if f is not fold] == [found["chosen"]] * (len(folds) - 1)
        ap = found["ap"][found["trees"].index(found["chosen"])]
        if name == "neither":  # judged by the rarer side: its own AP is nearly 1 with any number of trees
            assert ap < 0.95 < fold["ap"]
        else:
            assert ap == pytest.approx(fold["ap"], abs=1e-5)


def test_a_student_is_loaded_and_asked_as_any_model_and_says_what_it_is(
    teacher: Path, distilled: tuple[Path, str], tmp_path: Path
) -> None:
    student, printed = distilled
    assert f"bin/evaluate {student} --against {teacher}" in printed
    copy = Path(shutil.copytree(student / "ensemble", tmp_path / "model"))
    model = metabatch.load(copy, fill_missing_kmers=True)  # some shards lack two
    assert model.bundle.strategy == "distilled"
    data = pl.read_parquet(DEMO / plan_of(student)["dataset"]["shards"][0]["name"])
    proba = model.predict_proba(data.head(300).to_arrow())
    assert proba.shape == (300, 3)
    assert proba.sum(axis=1) == pytest.approx(np.ones(300))
    identity = plan_of(teacher)["fingerprint"]
    evaluation = json.loads((student / "evaluation/metrics.json").read_text())
    assert (evaluation["teacher"]["fingerprint"], evaluation["teacher"]["members"]) == (identity, 3)
    for report in ("evaluation/report.html", "instances/00/report.html"):
        assert f"the 3 members of plan {identity[:12]}" in (student / report).read_text()
    assert "size of the student" in (student / "instances/00/report.html").read_text()
    state = succeed("status", "--json", student).json
    assert (state["ensemble"], state["evaluation"]) == ("done", "done")


def test_done_again_it_does_nothing_and_a_student_of_another_is_refused(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in student.rglob("*") if p.is_file()}
    succeed("distill", "--quiet", "--analyses", "overfitting", teacher, student)
    assert {p: p.stat().st_mtime_ns for p in student.rglob("*") if p.is_file()} == before
    plain = start("plan", "--strategy", "auto", *FEW, DEMO, student)
    assert plain.code == 3
    assert "not of a model without teacher" in plain.err
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    succeed("consolidate", "--quiet", "--combine", "logit-mean", other)
    refused = start("distill", "--analyses", "overfitting", other, student)
    assert refused.code == 3
    assert "holds the plan of a student of plan" in refused.err
    assert "--force" in refused.err


def test_external_memory_gives_the_same_student(teacher: Path, student: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = succeed("distill", "--plan-only", "--quiet", *NO_ANALYSES, "--strategy", "external", teacher, run)
    assert "sbatch --array=0-0" in said.out
    assert not (run / "instances").exists()
    train_all(run)
    assert json.loads((run / "instances/00/resource_usage.json").read_text())["external"]
    assert models(run) == models(student)


def test_taught_the_true_labels_a_student_has_the_first_trees_of_a_plain_model_and_otherwise_not(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    """Shows too that every row got its own soft label."""
    plain, taught = tmp_path / "plain", tmp_path / "taught"
    gone = ["3mer_AAA", *(set(features_of(teacher)) - set(features_of(student)))]
    succeed("plan", "--quiet", "--strategy", "single", "--holdout-fraction", "0.3", "--exclude-features",
            ",".join(gone), *FEW, "--max-depth", plan_of(student)["options"]["max_depth"], DEMO, plain)  # fmt: skip
    shutil.copytree(student, taught, ignore=shutil.ignore_patterns("instances", "ensemble", "evaluation"))
    file, plan = taught / "soft_labels.parquet", load(taught / "plan.json", Plan)
    soft = pl.read_parquet(file)
    names = soft["gene_id"].unique(maintain_order=True)
    parts = []
    for gene in names:
        label = rows_of(gene, plan_of(plain))["splice_type"]
        truth = {f"{c}_soft": (label == c).cast(pl.Float32) for c in CLASSES}
        parts.append(pl.DataFrame({"gene_id": [gene] * len(label), **truth}))
    pl.concat(parts).write_parquet(file)
    plan = msgspec.structs.replace(plan, tables=plan.tables | {file.name: sha256_file(file)})
    plan = msgspec.structs.replace(plan, fingerprint=plan_fingerprint(plan))
    save(taught / "plan.json", msgspec.structs.replace(plan, seal=plan_seal(plan)))
    for run in (plain, taught):
        train_all(run)
    for name in CLASSES:
        whole, own, ours = (
            xgb.Booster(model_file=run / f"instances/00/model/{name}.ubj") for run in (plain, taught, student)
        )
        few = whole[: own.num_boosted_rounds()]
        assert own.get_dump(with_stats=True) == few.get_dump(with_stats=True)
        assert ours.get_dump(with_stats=True) != whole[: ours.num_boosted_rounds()].get_dump(with_stats=True)


def test_killed_in_training_and_started_again_the_student_has_the_same_bits(
    teacher: Path, student: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("distill", "--quiet", "--checkpoint-seconds", "0", "--analyses", "overfitting", teacher, run)
    process = at_work(*words)
    instance = run / "instances/00"
    wait_until(lambda: any(instance.glob("checkpoints/*fold-1*.ckpt")), "a checkpoint of the second fold")
    kill_tree(process)
    assert not (instance / "done.json").exists()
    succeed(*words)
    usage = json.loads((instance / "resource_usage.json").read_text())
    assert usage["restored_rounds"] > 0
    assert models(run) == models(student)


def test_without_a_holdout_the_student_has_none_and_says_what_its_estimate_is_worth(tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", "single", "--holdout-fraction", "0", *FEW, DEMO, teacher)
    train_all(teacher)
    succeed("consolidate", "--quiet", teacher)
    said = succeed("distill", "--quiet", "--plan-only", *NO_ANALYSES, teacher, run)
    plan = plan_of(run)
    assert plan["holdout"]["genes"] == 0
    assert any("out-of-fold estimate is optimistic" in w for w in plan["warnings"])
    assert "out-of-fold estimate is optimistic" in said.out
    assert plan["teacher"]["how"] == "37 genes by out-of-fold scores"


def alter_member(run: Path) -> None:
    file = run / "ensemble/members/01/donor.ubj"
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def alter_data(run: Path) -> None:
    """The run's plan says where its data lies; the seal does not cover the place."""
    data = Path(shutil.copytree(DEMO, run.parent / "data"))
    shard = min(data.glob("*.parquet"))
    pl.read_parquet(shard).head(-1).write_parquet(shard)
    plan = load(run / "plan.json", Plan)
    save(
        run / "plan.json", msgspec.structs.replace(plan, dataset=msgspec.structs.replace(plan.dataset, path=str(data)))
    )


def forget_ensemble(run: Path) -> None:
    shutil.rmtree(run / "ensemble")


def alter_instance(run: Path) -> None:
    file = run / "instances/02/oof.parquet"
    pl.read_parquet(file).head(-1).write_parquet(file)


def leave_the_bundle(run: Path) -> None:
    bundle = run.parent / "bundle"
    shutil.move(run / "ensemble", bundle)
    shutil.rmtree(run)
    bundle.rename(run)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (alter_member, "the ensemble cannot be used: members/01/donor.ubj differs"),
        (alter_data, "the data set changed since the plan was made"),
        (forget_ensemble, "the ensemble cannot be used: not done"),
        (alter_instance, "instance 2: oof.parquet differs"),
        (leave_the_bundle, "is a model without its run"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_and_nothing_is_written(
    teacher: Path, copy_of: Callable[[Path], Path], tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    run = copy_of(teacher)
    damage(run)
    refused = start("distill", "--plan-only", run, tmp_path / "student")
    assert refused.code == 3
    assert words in refused.err
    assert not (tmp_path / "student").exists()


def test_a_teacher_with_a_prior_is_refused(tmp_path: Path) -> None:
    """Its probabilities are at another prevalence than the labels a student is judged by."""
    data, teacher = write_table(tmp_path / "data", small_table()), tmp_path / "teacher"
    succeed("plan", "--quiet", "--prior", "donor=0.001", *FEW, data, teacher)
    refused = start("distill", "--plan-only", teacher, tmp_path / "student")
    assert refused.code == 3
    assert "was planned with --prior" in refused.err
    assert not (tmp_path / "student").exists()


def test_wrong_options_are_refused(teacher: Path, tmp_path: Path) -> None:
    for words, expected in (
        (("--strategy", "multi-instance", teacher, tmp_path / "s"), "not for a student"),
        (("--force", teacher, teacher), "TEACHER and RUN are both"),
        (("--checkpoint-seconds", "5", teacher, tmp_path / "s"), "--checkpoint-seconds decides nothing here"),
    ):
        refused = start("distill", "--plan-only", *words)
        assert refused.code == 2
        assert expected in refused.err
    assert (teacher / "ensemble/done.json").exists()
    assert not (tmp_path / "s").exists()


def test_altered_soft_labels_are_noticed(student: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(student)
    file = run / "soft_labels.parquet"
    soft = pl.read_parquet(file)
    soft.with_columns(donor_soft=pl.lit(0.5, pl.Float32)).write_parquet(file)
    refused = start("train-instance", "--force", run, "0")
    assert refused.code == 3
    assert "soft_labels.parquet was changed after the plan was made" in refused.err
