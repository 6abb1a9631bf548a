"""Bad input: one clear message with names, the documented exit code, nothing half-written, no traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, NO_ANALYSES, QUICK, Outcome, small_table, start, succeed, write_table

FAST = ("--n-folds", "2", "--n-estimators", "3", *NO_ANALYSES)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_table(tmp_path / "data", small_table(genes=12, rows=30))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def change(data: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], shard: int = 1) -> None:
    file = data / f"part-{shard}.parquet"
    edit(pl.read_parquet(file)).write_parquet(file)


def refused(run: Path, code: int, *words: str, command: tuple[str | Path, ...]) -> Outcome:
    """The command fails with `code`, says all `words`, shows no traceback and makes no run directory."""
    outcome = start(*command)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    assert not run.exists() or not list(run.iterdir())
    return outcome


def plan_refused(data: Path, run: Path, *words: str, code: int = 3, options: tuple[str, ...] = ()) -> None:
    refused(run, code, *words, command=("plan", *FAST, *options, data, run))


def test_no_data_set(tmp_path: Path, run: Path) -> None:
    plan_refused(tmp_path / "nowhere", run, "does not exist")
    (tmp_path / "empty").mkdir()
    plan_refused(tmp_path / "empty", run, "no *.parquet file")


def test_a_run_directory_that_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for words in ((), ("--force",)):
        outcome = start("plan", *FAST, *words, data, tmp_path / "file")
        assert outcome.code == 3, outcome.err
        assert "file is a file" in outcome.err
        assert "Traceback" not in outcome.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_truncated_shard_is_named(data: Path, run: Path) -> None:
    file = data / "part-1.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    plan_refused(data, run, "part-1.parquet", "cannot be read as parquet")
    refused(run, 3, "part-1.parquet", command=("inspect-dataset", data))


def test_a_shard_damaged_inside_is_named(data: Path, run: Path) -> None:
    file = data / "part-1.parquet"
    raw = bytearray(file.read_bytes())
    raw[4:64] = b"\xff" * 60  # the first page's header
    file.write_bytes(bytes(raw))
    outcome = start("plan", *FAST, data, run)
    assert outcome.code == 3
    assert "part-1.parquet" in outcome.err
    assert "Traceback" not in outcome.err
    assert not run.exists()


def test_a_flipped_bit_is_found_where_the_pages_carry_checksums(data: Path, run: Path) -> None:
    file = data / "part-1.parquet"
    pq.write_table(pq.read_table(file), file, write_page_checksum=True, compression="none", use_dictionary=False)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 4] ^= 1
    file.write_bytes(bytes(raw))
    plan_refused(data, run, "part-1.parquet", "is damaged")


def test_a_zero_byte_file_is_named_and_an_empty_shard_is_noted(data: Path, run: Path) -> None:
    change(data, lambda f: f.clear())
    assert "shard part-1.parquet is empty" in succeed("plan", "--quiet", *FAST, data, run).out
    (data / "part-2.parquet").write_bytes(b"")
    plan_refused(data, run.with_name("other"), "part-2.parquet", "0 bytes")


def test_a_missing_or_renamed_column_is_named_with_what_looks_alike(data: Path, run: Path) -> None:
    plan_refused(data, run, "no column gene", "there is gene_id", options=("--group-column", "gene"))
    change(data, lambda f: f.rename({"splice_type": "type"}))
    plan_refused(data, run, "column splice_type is missing from 1 shard(s): part-1.parquet")


def test_text_in_a_number_column_is_named_with_both_shards(data: Path, run: Path) -> None:
    change(data, lambda f: f.with_columns(pl.col("signal").cast(pl.String)))
    plan_refused(data, run, "column signal", "part-0.parquet", "part-1.parquet")


def test_an_unknown_text_column_is_an_error_until_it_is_named(data: Path, run: Path) -> None:
    for shard in (0, 1):
        change(data, lambda f: f.with_columns(pl.lit("x").alias("tissue")), shard)
    plan_refused(data, run, "column tissue", "--exclude-features tissue")
    succeed("plan", "--quiet", *FAST, "--exclude-features", "tissue", data, run)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_values_are_named(data: Path, run: Path, value: float) -> None:
    change(
        data,
        lambda f: f.with_columns(pl.when(pl.int_range(f.height) == 7).then(value).otherwise("signal").alias("signal")),
    )
    plan_refused(data, run, "column signal holds infinite", "part-1.parquet")


def test_nan_is_missing_and_trains(data: Path, run: Path) -> None:
    change(
        data,
        lambda f: f.with_columns(
            pl.when(pl.int_range(f.height) % 3 == 0).then(float("nan")).otherwise("signal").alias("signal")
        ),
    )
    succeed("run-all", "--quiet", *FAST, "--holdout-fraction", "0.2", data, run)


def test_missing_base_scores_train_and_the_report_says_why_there_is_no_comparison(data: Path, run: Path) -> None:
    gap = pl.when(pl.int_range(pl.len()) % 9 == 0).then(float("nan")).otherwise("donor_score")
    change(data, lambda f: f.with_columns(gap.alias("donor_score")))
    out = succeed("run-all", "--quiet", *FAST, "--holdout-fraction", "0", data, run).out
    assert "donor: AP" in out
    assert "its base score is missing in 20 rows" in out
    assert "acceptor: AP 0." in out
    assert "its base" in out


def test_unknown_labels_and_null_genes_are_named(data: Path, run: Path) -> None:
    at = pl.int_range(pl.len()) == 3
    change(
        data, lambda f: f.with_columns(pl.when(at).then(pl.lit("Donor")).otherwise("splice_type").alias("splice_type"))
    )
    plan_refused(data, run, "'Donor'", "neither, donor, acceptor", "part-1.parquet")
    change(data, lambda f: f.with_columns(pl.when(at).then(None).otherwise("gene_id").alias("gene_id")))
    plan_refused(data, run, "1 row(s) have no gene_id")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), None])
def test_bad_weights_are_named(data: Path, run: Path, weight: float | None) -> None:
    for shard in (0, 1):
        value = pl.when(pl.int_range(pl.len()) == 2).then(pl.lit(weight, pl.Float32)).otherwise(1.0)
        change(data, lambda f, v=value: f.with_columns(v.alias("sampling_weight")), shard)  # type: ignore[misc]
    plan_refused(data, run, "sampling_weight", "finite weights >= 0")


def test_duplicate_rows_are_found_within_and_across_shards(data: Path, run: Path) -> None:
    original = (data / "part-1.parquet").read_bytes()
    change(data, lambda f: pl.concat([f, f.head(2)]))
    plan_refused(data, run, "2 duplicate row(s): same gene_id, position")
    (data / "part-1.parquet").write_bytes(original)
    first = pl.read_parquet(data / "part-0.parquet")
    first.head(5).write_parquet(data / "part-2.parquet")
    plan_refused(data, run, "5 duplicate row(s)", "part-0.parquet", "part-2.parquet")


def test_the_same_shard_twice_is_refused(data: Path, run: Path) -> None:
    (data / "copy.parquet").write_bytes((data / "part-0.parquet").read_bytes())
    plan_refused(data, run, "copy.parquet and part-0.parquet have the same content")


def test_a_gene_in_two_shards_is_read_together_and_noted(data: Path, run: Path) -> None:
    frame = pl.read_parquet(data / "part-0.parquet")
    gene = frame["gene_id"][0]
    half = (pl.col("gene_id") == gene) & (pl.col("position") >= 15)
    frame.filter(~half).write_parquet(data / "part-0.parquet")
    frame.filter(half).write_parquet(data / "part-2.parquet")
    out = succeed("plan", "--quiet", *FAST, "--holdout-fraction", "0", data, run).out
    assert f"1 gene(s) lie in more than one shard, e.g. {gene}" in out
    succeed("train-instance", "--quiet", run, "0")
    oof = pl.read_parquet(run / "instances/00/oof.parquet")
    assert oof.filter(pl.col("gene_id") == gene)["position"].sort().to_list() == list(range(30))
    assert oof.filter(pl.col("gene_id") == gene)["fold"].n_unique() == 1


def test_a_gene_in_two_loci_is_refused(data: Path, run: Path) -> None:
    for shard in (0, 1):
        change(data, lambda f: f.with_columns(pl.col("position").cast(pl.String).alias("locus_id")), shard)
    plan_refused(data, run, "lie in more than one locus_id")


def test_absent_classes_are_refused_with_the_reason(data: Path, run: Path) -> None:
    for shard in (0, 1):
        change(data, lambda f: f.filter(pl.col("splice_type") != "donor"), shard)
    plan_refused(data, run, "class donor", options=("--holdout-fraction", "0"))


def test_a_class_in_few_genes_trains_with_null_metrics_where_undefined(tmp_path: Path, run: Path) -> None:
    frame = small_table(genes=12, rows=30)
    rare = pl.col("gene_id").is_in(["G000", "G001"])
    frame = frame.filter(rare | (pl.col("splice_type") != "donor"))
    data = write_table(tmp_path / "rare", frame)
    out = succeed(
        "run-all",
        "--quiet",
        "--n-folds",
        "4",
        "--n-estimators",
        "5",
        "--holdout-fraction",
        "0",
        *NO_ANALYSES,
        data,
        run,
    )
    assert "donor" in out.out
    import json

    folds = json.loads((run / "instances/00/metrics.json").read_text())["classes"]["donor"]["folds"]
    assert sum(f["ap"] is None for f in folds) == 2


def test_a_giant_gene_over_the_budget_is_named(tmp_path: Path, run: Path) -> None:
    small = small_table(genes=12, rows=30)
    giant = small_table(genes=1, rows=150_000).with_columns(pl.lit("GIANT").alias("gene_id"))
    data = write_table(tmp_path / "giant", pl.concat([small, giant]))
    words = ("--strategy", "multi-instance", "--max-memory-per-instance-gb", "0.26", "--holdout-fraction", "0")
    plan_refused(data, run, "gene GIANT alone has 150,000 rows", "--max-memory-per-instance-gb", code=4, options=words)


def test_more_folds_than_genes(data: Path, run: Path) -> None:
    refused(run, 3, "--n-folds 40, but only 11 gene_id", command=("plan", "--n-folds", "40", data, run))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n-folds", "x"), ("--n-folds x cannot be used",)),
        (("--n-folds", "1"), ("--n-folds 1",)),
        (("--subsample", "1.5"), ("--subsample 1.5 is out of range",)),
        (("--strategy", "best"), ("--strategy best",)),
        (("--classes", "donor"), ("two or more",)),
        (("--holdout-fraction", "nan"), ("--holdout-fraction",)),
        (("--min-instances", "9", "--max-instances", "3"), ("--min-instances 9 is above",)),
        (("--prior", "donor=2"), ("--prior donor=2",)),
        (("--n-folds", "0"), ("--calibration none",)),
        (("--unknown-option", "1"), ("the arguments do not fit", "Usage:")),
    ],
)
def test_options_that_cannot_be_used(data: Path, run: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run, 2, *words, command=("plan", *options, data, run))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--exclude-features", "nope"), ("no column nope",)),
        (("--holdout-chrom", "chr1"), ("--holdout-chrom chr1",)),
        (("--sample-genes", "99"), ("--sample-genes 99, but the data set has 12 genes",)),
        (("--weight-column", "w"), ("no column w",)),
        (("--score-columns", "foo_score"), ("foo_score belongs to no class",)),
        (("--allow-features", "splice_type"), ("it is the label column",)),
    ],
)
def test_options_that_do_not_fit_the_data(
    data: Path, run: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run, 3, *words, command=("plan", *FAST, *options, data, run))


@pytest.mark.parametrize("index", ["5", "-1", "one"])
def test_an_instance_that_is_not_there(trained: Path, index: str) -> None:
    assert start("train-instance", trained, "--", index).code == 2
    assert start("train-instance", trained, env={"SLURM_ARRAY_TASK_ID": index}).code == 2
    assert start("train-instance", trained).code == 2


@pytest.mark.parametrize("command", ["train-instance", "consolidate", "evaluate", "status"])
def test_a_run_directory_that_is_none(tmp_path: Path, command: str) -> None:
    words = [command, tmp_path / "nothing", *(["0"] if command == "train-instance" else [])]
    outcome = start(*words)
    assert outcome.code == 3
    assert "bin/plan" in outcome.err
    assert not (tmp_path / "nothing").exists()


def test_stages_out_of_order_name_the_command_that_is_missing(data: Path, run: Path) -> None:
    succeed("plan", "--quiet", *FAST, data, run)
    assert "bin/consolidate" in start("evaluate", run).err
    outcome = start("consolidate", run)
    assert outcome.code == 3
    assert "bin/train-instance" in outcome.err
    assert start("predict", run, data, run.with_name("out")).code == 3
    assert not run.with_name("out").exists()


def test_more_than_the_memory_of_this_process_is_refused_before_it_starts(data: Path, run: Path) -> None:
    succeed("plan", "--quiet", *FAST, data, run)
    outcome = start("train-instance", run, "0", env={"SLURM_MEM_PER_NODE": "100"})
    assert outcome.code == 4
    assert "SLURM_MEM_PER_NODE=100" in outcome.err
    assert "--mem=" in outcome.err
    assert [p.name for p in (run / "instances/00").iterdir()] == ["attempts.jsonl"]  # every rung was not-tried


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_message_and_the_work_resumes_after(tiny_disk: Path) -> None:
    run = tiny_disk / "run"
    succeed("plan", "--quiet", *QUICK, "--holdout-fraction", "0.3", DEMO, run)
    ballast = tiny_disk / "ballast"
    free = os.statvfs(tiny_disk)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_bsize - 60_000))
    outcome = start("train-instance", "--quiet", run, "0")
    assert outcome.code == 3
    assert "no space left" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (run / "instances/00/done.json").exists()
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", tiny_disk], check=True)
    succeed("train-instance", "--quiet", run, "0")


def test_a_read_only_run_directory_is_one_message(tiny_disk: Path) -> None:
    run = tiny_disk / "run"
    succeed("plan", "--quiet", *QUICK, "--holdout-fraction", "0.3", DEMO, run)
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    for words in (("train-instance", run, "0"), ("plan", "--force", DEMO, run)):
        outcome = start(*words)
        assert outcome.code == 3, outcome.err
        assert "Read-only" in outcome.err
        assert "Traceback" not in outcome.err
    assert succeed("status", run).out  # looking is allowed


def test_numbers_are_checked_at_prediction_too(trained: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(DEMO / "positions-00000.parquet")
    out = tmp_path / "out"
    for name, bad, word in (
        ("donor_score", frame["donor_score"].cast(pl.String), "column donor_score holds"),
        ("gc_content", pl.Series([np.inf] * frame.height), "infinite"),
    ):
        file = tmp_path / f"{name}.parquet"
        frame.with_columns(bad.alias(name)).write_parquet(file)
        outcome = start("predict", trained, file, out)
        assert outcome.code == 3
        assert word in outcome.err
        assert "Traceback" not in outcome.err
        assert not out.exists()
