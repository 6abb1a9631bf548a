"""Tables that are unusual but right train and predict; those that cannot be are refused in one message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import metabatch
from tests.conftest import DEMO, NO_ANALYSES, plan_of, small_table, start, succeed, train_all, write_table

FAST = ("--n-folds", "2", "--n-estimators", "3", *NO_ANALYSES)


def run_through(data: Path, run: Path, *options: str) -> None:
    succeed("plan", "--quiet", *FAST, *options, data, run)
    train_all(run)
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)


def edit(data: Path, shard: int, *columns: pl.Expr) -> None:
    file = data / f"part-{shard}.parquet"
    pl.read_parquet(file).with_columns(*columns).write_parquet(file)


def test_class_names_that_look_like_numbered_files_keep_their_own_models(tmp_path: Path) -> None:
    frame = small_table()
    names = {"neither": "class1", "donor": "a b", "acceptor": "CLASS1"}
    data = write_table(tmp_path / "data", frame.with_columns(pl.col("splice_type").replace(names)))
    run = tmp_path / "run"
    succeed("run-all", "--quiet", "--n-folds", "2", "--n-estimators", "3", "--analyses", "curves", "--classes",
            "class1,a b,CLASS1", "--learning-rate", "0.9", "--holdout-fraction", "0.2", data, run)  # fmt: skip
    model = metabatch.load(run)
    proba = model.predict_proba(frame)
    truth = frame["splice_type"].replace(names).to_numpy()
    for code, name in enumerate(model.classes_):  # each class's column is highest for its own rows
        assert proba[truth == name, code].mean() > 2 * proba[truth != name, code].mean()
    assert len(list((run / "evaluation" / "figures").glob("*.png"))) == 9  # three a class


@pytest.mark.parametrize("other", [pl.Int32, pl.Float64, pl.UInt64], ids=str)
def test_positions_may_have_another_number_type_in_every_shard(tmp_path: Path, other: pl.DataType) -> None:
    frame = small_table(genes=12, rows=30)
    data = write_table(tmp_path / "data", frame)
    edit(data, 1, pl.col("position").cast(other))
    run = tmp_path / "run"
    run_through(data, run, "--holdout-fraction", "0")
    scored = pl.read_parquet(run / "evaluation/predictions.parquet", columns=["gene_id", "position"])
    numbers = scored.with_columns(pl.col("position").cast(pl.Float64).cast(pl.Int64)).sort("gene_id", "position")
    assert numbers.equals(frame.select("gene_id", "position").sort("gene_id", "position"))
    succeed("predict", "--quiet", run, data, tmp_path / "out")
    parts = [pl.read_parquet_schema(f) for f in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert len(parts) == 2
    assert parts[0] == parts[1]


def test_text_ids_may_be_categorical_in_one_shard_and_plain_in_another(tmp_path: Path) -> None:
    frame = small_table(genes=12, rows=30).with_columns(transcript_id=pl.lit("T1"))
    data = write_table(tmp_path / "data", frame)
    edit(data, 1, pl.col("transcript_id").cast(pl.Categorical))
    run_through(data, tmp_path / "run", "--holdout-fraction", "0")
    scored = pl.read_parquet(tmp_path / "run/evaluation/predictions.parquet")
    assert scored.schema["transcript_id"] == pl.String
    assert set(scored["transcript_id"]) == {"T1"}


def test_ids_beyond_int64_and_whole_number_weights_beyond_float32_are_carried(tmp_path: Path) -> None:
    n = 12 * 30
    frame = small_table(genes=12, rows=30).with_columns(
        hash=pl.Series(np.arange(n, dtype=np.uint64) + np.uint64(2**63)), w=pl.Series(np.full(n, 2**25 + 1))
    )
    data = write_table(tmp_path / "data", frame)
    run = tmp_path / "run"
    run_through(data, run, "--holdout-fraction", "0.2", "--id-columns", "hash", "--weight-column", "w")
    oof = pl.read_parquet(run / "instances/00/oof.parquet")
    assert set(oof["hash"]) <= set(frame["hash"])
    assert pl.read_parquet(run / "evaluation/predictions.parquet")["weight"][0] == pytest.approx(2**25, rel=1e-6)


def test_id_columns_do_not_make_rows_duplicates_of_each_other(tmp_path: Path) -> None:
    frame = small_table(genes=12, rows=30).with_columns(chrom=pl.lit("chr1"))
    data = write_table(tmp_path / "data", frame)
    succeed("plan", "--quiet", *FAST, "--id-columns", "chrom", data, tmp_path / "run")
    twice = pl.concat([frame, frame.head(3)])
    odd = write_table(tmp_path / "odd", twice)
    outcome = start("plan", *FAST, "--id-columns", "chrom", odd, tmp_path / "other")
    assert outcome.code == 3
    assert "3 duplicate row(s)" in outcome.err


def test_features_with_names_xgboost_refuses_do_not_meet_others(tmp_path: Path) -> None:
    frame = small_table().rename({"signal": "a<b", "gc_content": "f1"}).select(pl.exclude("3mer_AAA", "3mer_CGA"))
    frame = frame.select("a<b", "f1", pl.exclude("a<b", "f1"))
    run_through(write_table(tmp_path / "data", frame), tmp_path / "run")
    model = metabatch.load(tmp_path / "run")
    assert {"a<b", "f1"} <= set(model.feature_names)
    turned = model.predict_proba(frame.select(reversed(frame.columns)))  # columns are found by their own names
    assert np.array_equal(turned, model.predict_proba(frame))


def test_a_data_set_behind_a_link_to_one_file(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table(), shards=1)
    link = tmp_path / "link.parquet"
    link.symlink_to(data / "part-0.parquet")
    run_through(link, tmp_path / "run")


@pytest.mark.parametrize("command", ["plan", "inspect-dataset"])
def test_a_table_without_rows(tmp_path: Path, command: str) -> None:
    data = write_table(tmp_path / "data", small_table().clear(), shards=1)
    assert pl.read_parquet(data / "part-0.parquet").height == 0
    outcome = start(command, data, *([tmp_path / "run"] if command == "plan" else []))
    assert outcome.code == 3
    assert "at least one row" in outcome.err


def test_a_feature_list_that_is_no_text(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_bytes(b"signal\xff\n")
    outcome = start("plan", "--exclude-features", listed, DEMO, tmp_path / "run")
    assert outcome.code == 2
    assert "no UTF-8" in outcome.err
    listed.write_text("  # a comment\n  donor_score_p9\n")
    succeed("plan", "--quiet", "--exclude-features", listed, DEMO, tmp_path / "run")
    excluded = {e["name"]: e["reason"] for e in json.loads((tmp_path / "run/features.json").read_text())["excluded"]}
    assert "--exclude-features" in excluded["donor_score_p9"]


def test_a_table_whose_genes_are_spread_is_read_right_and_warned_of(tmp_path: Path) -> None:
    frame = small_table(genes=12, rows=60)
    (tmp_path / "data").mkdir()
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "data/a.parquet", row_group_size=100)
    said = succeed("plan", *FAST, tmp_path / "data", tmp_path / "run").out
    assert "write the table sorted by gene" in said
    genes = pl.read_parquet(tmp_path / "run/genes.parquet")
    assert set(genes["rows"]) == {60}
    assert genes["n_donor"].sum() == (frame["splice_type"] == "donor").sum()


def with_chromosomes(folder: Path, chrom: list[str | None], locus: list[int] | None = None) -> Path:
    frame = small_table(genes=len(chrom), rows=30)
    columns = [pl.Series("chrom", np.repeat(np.array(chrom, dtype=object), 30).tolist(), dtype=pl.String)]
    if locus is not None:
        columns.append(pl.Series("locus_id", np.repeat(locus, 30)))
    return write_table(folder, frame.with_columns(columns))


def splits(run: Path) -> dict[str, str]:
    genes = pl.read_parquet(run / "genes.parquet")
    return dict(zip(genes["gene_id"], genes["split"], strict=True))


def test_genes_without_a_chromosome_are_trained_on_not_lost(tmp_path: Path) -> None:
    data = with_chromosomes(tmp_path / "data", ["chr1"] * 4 + ["chr2"] * 6 + [None] * 2)
    succeed("plan", "--quiet", *FAST, "--holdout-chrom", "chr1", data, tmp_path / "run")
    assert sum(s == "holdout" for s in splits(tmp_path / "run").values()) == 4
    assert "2 without a chromosome" in plan_of(tmp_path / "run")["holdout"]["how"]
    assert set(pl.read_parquet(tmp_path / "run/assignments.parquet")["gene_id"]) == {f"G{i:03d}" for i in range(4, 12)}


def test_a_chromosome_holdout_takes_whole_split_groups(tmp_path: Path) -> None:
    loci = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10]  # locus 3: one gene on chr1, one on chr2
    data = with_chromosomes(tmp_path / "data", ["chr1"] * 4 + ["chr2"] * 8, loci)
    succeed("plan", "--quiet", *FAST, "--holdout-chrom", "chr1", data, tmp_path / "run")
    assert splits(tmp_path / "run")["G004"] == "holdout"
    assert "1 gene(s) elsewhere of the same locus_id" in plan_of(tmp_path / "run")["holdout"]["how"]


def test_a_gene_on_two_chromosomes_cannot_be_held_out_by_chromosome(tmp_path: Path) -> None:
    data = with_chromosomes(tmp_path / "data", ["chrX"] * 6 + ["chrY"] * 6)
    edit(data, 0, pl.when((pl.col("gene_id") == "G000") & (pl.col("position") > 9)).then(pl.lit("chrY")).otherwise(
        pl.col("chrom")).alias("chrom"))  # fmt: skip
    outcome = start("plan", *FAST, "--holdout-chrom", "chrY", data, tmp_path / "run")
    assert outcome.code == 3
    assert "G000" in outcome.err


def test_folds_that_cannot_judge_a_class_do_not_choose_its_trees(tmp_path: Path) -> None:
    frame = small_table(genes=12, rows=60)
    rare = frame["gene_id"].is_in(["G000", "G001", "G002"])  # acceptors in three genes, for six folds
    label = pl.when((pl.col("splice_type") == "acceptor") & ~rare).then(pl.lit("neither")).otherwise("splice_type")
    data = write_table(tmp_path / "data", frame.with_columns(label.alias("splice_type")))
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-folds", "6", "--n-estimators", "300", "--early-stopping-patience", "5",
            "--learning-rate", "0.3", "--holdout-fraction", "0", *NO_ANALYSES, data, run)  # fmt: skip
    succeed("train-instance", "--quiet", run, "0")
    metrics = json.loads((run / "instances/00/metrics.json").read_text())
    best = [f["best_rounds"] for f in metrics["classes"]["acceptor"]["folds"]]
    assert best.count(None) == 3
    found = [b for b in best if b is not None]
    assert metrics["trees"]["acceptor"] == int(np.ceil(np.mean(found) + np.std(found)))
    assert metrics["trees"]["acceptor"] < 300


def test_instances_with_fewer_genes_than_folds_are_refused(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table(genes=9, rows=30))
    outcome = start("plan", "--n-folds", "5", "--strategy", "multi-instance", "--min-instances", "3",
                    "--genes-per-instance", "3", "--instance-overlap", "0", "--holdout-fraction", "0", data,
                    tmp_path / "run")  # fmt: skip
    assert outcome.code == 4
    assert "3 gene(s) for 5 folds" in outcome.err


def test_priors_reach_the_probabilities_without_cross_validation_too(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table())
    means = []
    for name, prior in (("plain", ()), ("prior", ("--prior", "donor=0.001,acceptor=0.002"))):
        run = tmp_path / name
        succeed(
            "plan",
            "--quiet",
            "--n-folds",
            "0",
            "--calibration",
            "none",
            "--n-estimators",
            "20",
            *NO_ANALYSES,
            *prior,
            data,
            run,
        )
        train_all(run)
        succeed("consolidate", "--quiet", run)
        means.append(metabatch.load(run).predict_proba(small_table(seed=3)).mean(axis=0))
    assert means[1][1] < 0.2 * means[0][1]  # donor
    assert means[1][0] < 0.3 * means[0][0]  # acceptor
    outcome = start("plan", "--prior", "donor=0.6,acceptor=0.5", data, tmp_path / "run")
    assert outcome.code == 2
    assert "add up to 1.1" in outcome.err


def test_missing_integers_of_numpy_and_pandas_are_missing(tmp_path: Path) -> None:
    frame = small_table()
    data = write_table(tmp_path / "data", frame)
    run_through(data, tmp_path / "run")
    model = metabatch.load(tmp_path / "run")
    holes = frame.with_columns(pl.when(pl.col("position") % 3 > 0).then("3mer_AAA").alias("3mer_AAA"))
    expected = model.predict_proba(holes)
    assert np.array_equal(model.predict_proba(holes.select(model.feature_names).to_pandas()), expected)
    array = holes.select(model.feature_names).cast(pl.Float64).to_numpy()
    assert np.isnan(array).any()
    assert np.array_equal(model.predict_proba(array), expected)
