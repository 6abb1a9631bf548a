"""Doing it twice does nothing; changed data, plans and artefacts are noticed and named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from metabatch.rundir.lock import hold_folder
from tests.conftest import (
    DEMO,
    NO_ANALYSES,
    QUICK,
    ROOT,
    at_work,
    plan_of,
    small_table,
    snapshot,
    start,
    succeed,
    wait_for,
    wait_until,
    write_table,
)


def test_every_finished_command_does_nothing_and_says_so(trained: Path) -> None:
    before = snapshot(trained)
    for words in (
        ("plan", "--holdout-fraction", "0.3", *QUICK, DEMO, trained),
        ("train-instance", trained, "0"),
        ("consolidate", trained),
        ("evaluate", trained),
    ):
        assert "already" in succeed(*words).out
    succeed("run-all", "--quiet", "--holdout-fraction", "0.3", *QUICK, DEMO, trained)
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("script", "words"), [("train", "instance 0 is already done"), ("consolidate", "already"), ("evaluate", "already")]
)
def test_the_sbatch_scripts_run_their_stage_and_pass_its_exit_code_on(trained: Path, script: str, words: str) -> None:
    """As a plain script here; tests on a real Slurm come with the cluster work."""
    env = os.environ | {"METABATCH_PYTHON": sys.executable, "METABATCH_HOME": str(ROOT), "SLURM_ARRAY_TASK_ID": "0"}
    command = ["bash", ROOT / "jobs" / f"{script}.sh"]
    done = subprocess.run([*command, trained], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    failed = subprocess.run([*command, trained / "nothing"], env=env, capture_output=True, text=True, check=False)
    assert failed.returncode == 3


def test_another_plan_in_the_same_directory_is_refused(trained: Path) -> None:
    refused = start("plan", "--holdout-fraction", "0.3", *QUICK, "--seed", "7", DEMO, trained)
    assert refused.code == 3
    assert "seed 42 -> 7" in refused.err
    assert "--force" in refused.err


def test_a_forced_plan_discards_what_was_trained_under_the_old(trained: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(trained)
    succeed("plan", "--quiet", "--force", "--holdout-fraction", "0.3", *QUICK, "--seed", "7", DEMO, run)
    assert plan_of(run)["seed"] == 7
    refused = start("consolidate", run)
    assert refused.code == 3
    assert "instance 0: not done" in refused.err


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused = start("plan", DEMO, tmp_path)
    assert refused.code == 3
    assert "thesis.txt" in refused.err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.fixture
def small_run(tmp_path: Path) -> tuple[Path, Path]:
    data = write_table(tmp_path / "data", small_table())
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-folds", "2", "--n-estimators", "5", *NO_ANALYSES, data, run)
    return data, run


def test_changed_data_under_a_plan_is_noticed(small_run: tuple[Path, Path]) -> None:
    data, run = small_run
    shard = data / "part-0.parquet"
    frame = pl.read_parquet(shard)
    frame.with_columns(pl.col("signal") + 1).write_parquet(shard)
    refused = start("train-instance", run, "0")
    assert refused.code == 3
    assert "part-0.parquet" in refused.err
    assert "changed since the plan" in refused.err
    (data / "part-9.parquet").write_bytes(shard.read_bytes())
    assert "part-9.parquet is new" in start("train-instance", run, "0").err
    shutil.rmtree(data)
    assert "part-1.parquet is missing" in start("train-instance", run, "0").err
    assert not (run / "instances" / "00" / "done.json").exists()


def test_a_touched_or_copied_data_set_is_the_same_data_set(small_run: tuple[Path, Path]) -> None:
    data, run = small_run
    for file in data.iterdir():
        os.utime(file)
    succeed("train-instance", "--quiet", run, "0")


def test_a_plan_changed_by_hand_is_refused(small_run: tuple[Path, Path]) -> None:
    _, run = small_run
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(text.replace('"n_estimators": 5', '"n_estimators": 6'))
    assert "was changed after it was made" in start("train-instance", run, "0").err
    plan = json.loads(text)
    for edit in ({"seed": 43}, {"instances": []}, {"coverage": 0.5}, {"budget": {"bytes": 1, "source": "me"}}):
        (run / "plan.json").write_text(json.dumps(plan | edit))
        outcome = start("train-instance", run, "0")
        assert outcome.code == 3, edit
        assert "was changed after it was made" in outcome.err
    (run / "plan.json").write_text(text.replace('"format_version": 1', '"format_version": 9', 1))
    refused = start("train-instance", run, "0")
    assert refused.code == 3
    assert "format_version 9" in refused.err
    (run / "plan.json").write_text(text[: len(text) // 2])
    assert start("status", run).code == 3
    (run / "plan.json").write_text(text)
    (run / "assignments.parquet").write_bytes(b"other")
    assert "assignments.parquet was changed" in start("train-instance", run, "0").err


def test_consolidate_lists_every_bad_instance_by_number(ensemble: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(ensemble)
    model = run / "instances" / "00" / "model" / "donor.ubj"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    shutil.rmtree(run / "instances" / "02")
    refused = start("consolidate", run)
    assert refused.code == 3
    assert "2 of 3 instances" in refused.err
    assert "instance 0: model/donor.ubj differs" in refused.err
    assert "instance 2: not done" in refused.err
    assert "instance 1" not in refused.err
    assert "--array=0,2" in refused.err
    assert not (run / "ensemble" / "done.json").exists()
    state = succeed("status", "--json", run).json
    assert [i["state"] for i in state["instances"]] == ["failed", "done", "pending"]
    # The damaged one is trained again by the same command, and the result is the same.
    succeed("train-instance", "--quiet", run, "0")
    original = ensemble / "instances" / "00" / "model" / "donor.ubj"
    assert model.read_bytes() == original.read_bytes()


def test_a_ledger_that_differs_from_the_plan_is_refused(ensemble: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(ensemble)
    marker = run / "instances" / "01" / "done.json"
    done = json.loads(marker.read_text())
    done["ledger"] = done["ledger"][1:]
    marker.write_text(json.dumps(done))
    refused = start("consolidate", run)
    assert refused.code == 3
    assert "instance 1: trained on" in refused.err


def test_an_instance_of_another_plan_is_refused(ensemble: Path, trained: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(ensemble)
    shutil.rmtree(run / "instances" / "01")
    shutil.copytree(trained / "instances" / "00", run / "instances" / "01")
    assert "instance 1: made under another plan" in start("consolidate", run).err


def test_a_retrained_instance_makes_consolidate_and_evaluate_run_again(
    trained: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(trained)
    succeed("train-instance", "--quiet", "--force", run, "0")
    assert "already" not in succeed("consolidate", run).out
    assert "already" not in succeed("evaluate", run).out


def test_a_second_process_on_a_live_instance_exits_5_and_says_who(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-estimators", "3000", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run)
    first = at_work("train-instance", run, "0")
    try:
        wait_for(run / "instances" / "00" / "lease.json")
        second = start("train-instance", run, "0")
        assert second.code == 5
        assert f"pid {first.pid}" in second.err
        wait_for(run / "instances" / "00" / "progress.json")
        state = succeed("status", "--json", run).json["instances"][0]
        assert state["state"] == "running"
        assert state["memory_now_bytes"] > 50 << 20
        lease = run / "instances" / "00" / "lease.json"
        wait_until(lambda: json.loads(lease.read_text())["heartbeat"] >= 2, "a second heartbeat")
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 75
    finally:
        first.kill()
    left = {p.name for p in (run / "instances" / "00").iterdir()}
    assert left == {"attempts.jsonl", "checkpoints"}
    assert succeed("status", "--json", run).json["instances"][0]["state"] == "interrupted"


def test_a_killed_instance_is_taken_over_is_on_record_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    data = write_table(tmp_path / "data", small_table())
    succeed("plan", "--quiet", "--strategy", "external", "--n-folds", "2", "--n-estimators", "400", *NO_ANALYSES,
            "--early-stopping-patience", "0", data, run)  # fmt: skip
    process = at_work("train-instance", run, "0", env={"TMPDIR": str(scratch)})
    wait_for(run / "instances" / "00" / "progress.json")
    wait_until(lambda: any(scratch.glob("metabatch-scratch-pages-*/*")), "page files")
    process.kill()
    process.wait()
    assert list(scratch.iterdir())
    state = succeed("status", "--json", run).json["instances"][0]
    assert (state["state"], state["attempts"]) == ("failed", 0)
    assert "killed" in state["detail"]
    succeed("train-instance", "--quiet", run, "0", env={"TMPDIR": str(scratch)})
    assert not list(scratch.iterdir())
    left = {p.name for p in (run / "instances" / "00").iterdir()}
    assert left == {"attempts.jsonl", "done.json", "metrics.json", "model", "oof.parquet", "resource_usage.json"}
    attempts = [json.loads(line) for line in (run / "instances/00/attempts.jsonl").read_text().splitlines()]
    assert [(a["attempt"], a["outcome"], a["rung"]) for a in attempts] == [
        (1, "killed", "external"),
        (2, "done", "external"),
    ]


def test_run_all_stops_its_stage_and_both_say_75(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = at_work("run-all", "--n-estimators", "5000", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run)
    wait_for(run / "instances" / "00" / "progress.json")
    process.terminate()
    assert process.wait(60) == 75
    assert not (run / "instances" / "00" / "lease.json").exists()  # the stage ended in order
    assert succeed("status", "--json", run).json["instances"][0]["state"] == "interrupted"


def handles_signals(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has put its handlers in place (the kernel's word; Python has one for INT from its start)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize(
    ("command", "folder"),
    [("plan", ""), ("train-instance", "instances/00"), ("consolidate", "ensemble"), ("evaluate", "evaluation")],
)
def test_a_stage_that_still_waits_for_its_folder_stops_with_75(
    trained: Path, copy_of: Callable[[Path], Path], command: str, folder: str, number: signal.Signals
) -> None:
    run = copy_of(trained)
    words = ["plan", "--force", DEMO, run] if command == "plan" else [command, "--force", run]
    with hold_folder(run / folder):
        process = at_work(*words, *(["0"] if command == "train-instance" else []))
        wait_until(lambda: handles_signals(process), "its handlers")
        process.send_signal(number)
        assert process.wait(60) == 75
    assert (run / "evaluation/report.html").exists()


def test_a_plan_is_not_replaced_under_a_training_at_work(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-estimators", "5000", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run)
    process = at_work("train-instance", run, "0")
    try:
        wait_for(run / "instances" / "00" / "lease.json")
        outcome = start("plan", "--force", DEMO, run)
        assert outcome.code == 5
        assert f"pid {process.pid}" in outcome.err
    finally:
        process.kill()
        process.wait()
    succeed("plan", "--quiet", "--force", DEMO, run)


def test_threads_and_the_memory_of_this_machine_do_not_make_another_plan(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table())
    words = ("plan", "--profile", "auto", "--n-folds", "2")
    less = {"SLURM_MEM_PER_NODE": "4000"}
    succeed(*words, data, tmp_path / "run", env=less)
    assert plan_of(tmp_path / "run")["profile"] == "low, without SHAP"
    assert "shap" not in plan_of(tmp_path / "run")["options"]["analyses"]
    again = succeed(*words, "--threads", "1", data, tmp_path / "run", env={"SLURM_MEM_PER_NODE": "12000"})
    assert "already planned" in again.out
    assert start(*words, "--n-estimators", "77", data, tmp_path / "run").code == 3


def test_evaluate_reads_no_altered_or_missing_instance(ensemble: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(ensemble)
    succeed("consolidate", "--quiet", run)
    oof = run / "instances/01/oof.parquet"
    frame = pl.read_parquet(oof)
    frame.with_columns(pl.lit(0.5, pl.Float32).alias("donor_meta")).write_parquet(oof)
    outcome = start("evaluate", run)
    assert outcome.code == 3
    assert "instance 1: oof.parquet differs" in outcome.err
    oof.unlink()
    assert "instance 1: oof.parquet differs" in start("evaluate", run).err
    succeed("train-instance", "--quiet", run, "1")
    outcome = start("evaluate", run)
    assert outcome.code == 3
    assert "made from other instances" in outcome.err
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)
