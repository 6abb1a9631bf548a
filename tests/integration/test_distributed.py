"""--strategy distributed: one model over several workers, on a Dask cluster that is there or one made for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from metabatch.errors import InputError
from metabatch.resources.law import BESIDE_BYTES
from metabatch.training.job import Place
from metabatch.training.team import Team
from tests.conftest import (
    DEMO,
    NO_ANALYSES,
    ROOT,
    Outcome,
    at_work,
    kill_tree,
    models,
    plan_of,
    small_table,
    start,
    succeed,
    wait_until,
    write_table,
)

pytest.importorskip("distributed")
TREES = (
    "--n-estimators", "12", "--n-folds", "2", "--learning-rate", "0.3", "--early-stopping-patience", "5",
    "--holdout-fraction", "0.35",
)  # fmt: skip
# Patient enough for all trees: the best round so far is part of what is kept.
SLOW = ("--n-estimators", "30", "--n-folds", "2", "--early-stopping-patience", "29", *NO_ANALYSES)


def planned(run: Path, workers: int, *words: str, data: Path = DEMO) -> Path:
    succeed("plan", "--quiet", "--strategy", "distributed", "--workers", str(workers), *words, data, run)
    return run


def trees(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in models(run).items() if name.endswith(".ubj")}


def usage_of(run: Path) -> dict:
    return json.loads((run / "instances/00/resource_usage.json").read_text())


def attempts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "instances/00/attempts.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("single") / "run"
    succeed("run-all", "--quiet", "--strategy", "single", *TREES, *NO_ANALYSES, DEMO, run)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What those become that are disturbed in their work."""
    run = planned(tmp_path_factory.mktemp("whole") / "run", 2, *SLOW)
    succeed("train-instance", "--quiet", run, "0")
    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scheduler file of a Dask cluster of three workers, as a user has one."""
    place = tmp_path_factory.mktemp("dask")
    with contextlib.ExitStack() as stack:
        file = place / "scheduler.json"
        words = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
        started(stack, "distributed.cli.dask_scheduler", "--port", "0", "--no-jupyter", *words)
        wait_until(lambda: file.exists() and file.stat().st_size > 0, "the scheduler file")
        for number in range(3):
            started(
                stack, "distributed.cli.dask_worker", "--nthreads", "1", "--memory-limit", "0", "--no-nanny",
                "--name", f"w{number}", "--local-directory", str(place), *words,
            )  # fmt: skip
        yield file


def started(stack: contextlib.ExitStack, module: str, *words: str, cwd: Path = ROOT) -> None:
    """One of Dask's own commands, until the stack ends; it finds what lies in `cwd`, and no more."""
    command = [sys.executable, "-m", module, *words]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(cwd)}
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(lambda: kill_tree(process) if process.poll() is None else None)


def trainers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train shares, below one that was started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(process.pid).children(recursive=True) if '"place":{' in " ".join(p.cmdline())]
    return []


def checkpointed(run: Path, boosters: int = 1) -> None:
    wait_until(lambda: len(list((run / "instances/00/checkpoints").glob("*.ckpt"))) >= boosters, "a checkpoint", 120)


def test_one_worker_grows_the_trees_of_a_process_alone(single: Path, tmp_path: Path) -> None:
    run = planned(tmp_path / "run", 1, *TREES, *NO_ANALYSES)
    succeed("train-instance", "--quiet", run, "0")
    assert models(run) == models(single)
    assert usage_of(run)["rung"] == "distributed"


def test_two_workers_grow_the_same_trees_and_all_that_belongs_to_them(single: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed(
        "run-all", "--quiet", "--strategy", "distributed", "--workers", "2", "--analyses", "ablation", *TREES, DEMO, run
    )
    plan = plan_of(run)
    (listed,) = [a for a in plan["alternatives"] if a["strategy"] == "distributed"]
    assert listed["why_not"] is None
    assert listed["relative_time"] < 1
    assert trees(run) == trees(single)
    # The calibration sums the same scores in another order, and the file has its rows in it.
    key = ["gene_id", "position"]
    oof, alone = (pl.read_parquet(r / "instances/00/oof.parquet").sort(key) for r in (run, single))
    scores = [c for c in oof.columns if c.endswith("_meta")]
    assert len(scores) == 3
    assert oof.drop(scores).equals(alone.drop(scores))
    assert np.abs(oof.select(scores).to_numpy() - alone.select(scores).to_numpy()).max() < 1e-6
    found, wanted = (json.loads((r / "evaluation/metrics.json").read_text())["meta"] for r in (run, single))
    for name in ("donor", "acceptor"):
        assert found[name]["ap"] == pytest.approx(wanted[name]["ap"], abs=1e-6)
    usage = usage_of(run)
    assert len(usage["worker_peak_bytes"]) == 2
    assert max(usage["worker_peak_bytes"]) <= usage["measured_peak_bytes"] < 1.1 * usage["predicted_peak_bytes"]
    analysis = json.loads((run / "instances/00/analysis.json").read_text())
    assert [(a["name"], a["status"]) for a in analysis["analyses"]] == [("ablation", "made")]
    assert "distributed" in (run / "evaluation/report.html").read_text()


def test_workers_that_cut_through_row_groups_grow_the_same_trees(tmp_path: Path) -> None:
    """Rows of genes that lie between one another, missing cells and weights; three workers, so no share is even."""
    rng = np.random.default_rng(5)
    table = small_table(genes=20, rows=90).with_columns(
        signal=pl.when(pl.Series(rng.random(1_800) < 0.3)).then(None).otherwise(pl.col("signal")),
        sampling_weight=pl.Series(rng.choice([1.0, 7.3, 20.1], 1_800)),
    )
    data = write_table(tmp_path / "data", table.sort("position", pl.col("gene_id").str.reverse()), row_group=170)
    words = ("--n-estimators", "25", "--n-folds", "3", "--learning-rate", "0.3", "--subsample", "0.6", *NO_ANALYSES)
    runs = [planned(tmp_path / f"run{workers}", workers, *words, data=data) for workers in (1, 3)]
    for run in runs:
        succeed("train-instance", "--quiet", run, "0")
    assert len(trees(runs[0])) == 3
    assert trees(runs[0]) == trees(runs[1])


def test_a_worker_killed_in_training_ends_the_run_with_its_name_and_the_same_command_goes_on_to_the_same_model(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = planned(tmp_path / "run", 2, *SLOW)
    words = ("train-instance", "--quiet", "--checkpoint-seconds", "0", run, "0")
    process = at_work(*words)
    checkpointed(run, 2)
    victim = trainers(process)[1].parent()  # the Dask worker itself
    assert victim is not None
    victim.kill()
    begun = time.monotonic()
    assert process.wait(timeout=60) == 75
    assert time.monotonic() - begun < 45  # the bound that is documented
    last = attempts(run)[-1]
    assert last["outcome"] == "killed"
    assert "was lost" in last["message"]
    wait_until(lambda: not (run / "instances/00/.orders.tmp").exists(), "an end of the orders")
    succeed(*words)
    assert models(run) == models(undisturbed)
    assert usage_of(run)["restored_rounds"] > 0


def test_told_to_stop_it_keeps_what_it_has_and_goes_on_later(undisturbed: Path, tmp_path: Path) -> None:
    run = planned(tmp_path / "run", 2, *SLOW)
    words = ("train-instance", "--quiet", "--checkpoint-seconds", "0", run, "0")
    process = at_work(*words)
    checkpointed(run)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert attempts(run)[-1]["outcome"] == "interrupted"
    assert list((run / "instances/00/checkpoints").glob("*.ckpt"))
    assert not (run / "instances/00/.lease.lock").exists()
    succeed(*words)
    assert models(run) == models(undisturbed)
    assert usage_of(run)["restored_rounds"] > 0


def test_when_whoever_leads_is_killed_the_workers_of_a_cluster_do_not_go_on_without_it(
    cluster: Path, tmp_path: Path
) -> None:
    run = planned(tmp_path / "run", 2, *SLOW)
    process = at_work("train-instance", "--quiet", "--checkpoint-seconds", "0", "--dask-scheduler", cluster, run, "0")
    checkpointed(run)
    kill_tree(process)
    # The next one takes the claim over; what the first one left at work notices, and is gone before it is done.
    done = start("train-instance", "--quiet", "--dask-scheduler", cluster, run, "0")
    assert done.code == 0, done.err
    assert usage_of(run)["restored_rounds"] > 0
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(run) in " ".join(p.info["cmdline"] or ())]
    assert not ours


def test_two_runs_on_one_cluster_take_turns_where_there_are_too_few_workers_for_both(
    cluster: Path, single: Path, tmp_path: Path
) -> None:
    runs = [planned(tmp_path / name, 2, *TREES, *NO_ANALYSES) for name in ("one", "two")]
    processes = [at_work("train-instance", "--quiet", "--dask-scheduler", cluster, run, "0") for run in runs]
    assert [p.wait(timeout=240) for p in processes] == [0, 0]
    assert models(runs[0]) == models(runs[1])


def test_a_cluster_that_does_not_have_metabatch_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    """A cluster that somebody started elsewhere, from another environment."""
    run = planned(tmp_path / "run", 1, *TREES, *NO_ANALYSES)
    with contextlib.ExitStack() as stack:
        file = tmp_path / "scheduler.json"
        words = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
        started(stack, "distributed.cli.dask_scheduler", "--port", "0", "--no-jupyter", *words, cwd=tmp_path)
        wait_until(lambda: file.exists() and file.stat().st_size > 0, "the scheduler file")
        alone = ["--nthreads", "1", "--memory-limit", "0", "--no-nanny", "--local-directory", str(tmp_path)]
        started(stack, "distributed.cli.dask_worker", *alone, *words, cwd=tmp_path)
        refused = start("train-instance", "--quiet", "--dask-scheduler", file, run, "0")
    assert_refused(refused, 3, "worker 0 cannot do its part")
    assert "scheduler and workers that have this checkout" in refused.err


def test_too_few_workers_a_wrong_scheduler_and_options_of_others_are_refused(
    cluster: Path, single: Path, tmp_path: Path
) -> None:
    run = planned(tmp_path / "run", 2, *TREES, *NO_ANALYSES)
    wrong = start("train-instance", "--quiet", "--dask-scheduler", "tcp://127.0.0.1:9", run, "0")
    assert_refused(wrong, 3, "cannot be reached")
    idle = start("train-instance", "--quiet", "--force", "--dask-scheduler", cluster, single, "0")
    assert_refused(idle, 2, "--dask-scheduler decides nothing")
    workers = start("plan", "--quiet", "--workers", "3", DEMO, tmp_path / "other")
    assert_refused(workers, 2, "--workers decides nothing")
    many = start("plan", "--quiet", "--strategy", "distributed", "--workers", "500", DEMO, tmp_path / "other")
    assert_refused(many, 4, "fewer than 500 workers")


def assert_refused(outcome: Outcome, code: int, said: str) -> None:
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_without_the_package_plan_says_what_to_install(tmp_path: Path) -> None:
    """Hidden by a module of the same name that is none."""
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'distributed' else find(name, *more)\n"
    )
    words = ("plan", "--quiet", "--strategy", "distributed", *TREES, DEMO, tmp_path / "run")
    refused = start(*words, env={"PYTHONPATH": str(tmp_path)})
    assert_refused(refused, 4, "bin/_setup requirements-distributed.lock")


def test_on_one_machine_everything_listens_on_loopback_only(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", 2, *SLOW)
    process = at_work("train-instance", "--quiet", "--checkpoint-seconds", "0", run, "0")
    try:
        checkpointed(run)
        ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        sockets = {f"pid={p.pid}," for p in ours}
        listening = subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True, check=True).stdout.splitlines()
        local = [line.split()[3] for line in listening if any(pid in line for pid in sockets)]
        assert len(local) >= 4  # scheduler, workers, XGBoost's own
        assert all(address.startswith("127.0.0.1:") or "%lo:" in address for address in local), local
    finally:
        kill_tree(process)


def test_workers_too_large_for_this_machine_use_pages_on_disk_and_make_the_same_trees(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table(genes=60, rows=200))
    words = (*TREES, *NO_ANALYSES)
    inside, outside = (planned(tmp_path / name, 2, *words, data=data) for name in ("inside", "outside"))
    succeed("train-instance", "--quiet", inside, "0")
    plan = plan_of(outside)
    predicted = plan["instances"][0]["predicted_peak_bytes"]
    assert plan["memory_law"]["fixed_anonymous_bytes"] < predicted
    room = (2 * (predicted + BESIDE_BYTES) >> 20) - 1  # for both, but for a MB
    said = start("train-instance", outside, "0", env={"SLURM_MEM_PER_NODE": str(room)})
    assert said.code == 0, said.err
    assert "2 workers need" in said.err
    assert [a["outcome"] for a in attempts(outside)] == ["not-tried", "done"]
    assert usage_of(outside)["rung"] == "distributed, external"
    assert models(outside) == models(inside)
    too_little = start("train-instance", "--force", outside, "0", env={"SLURM_MEM_PER_NODE": "600"})
    assert_refused(too_little, 4, "cannot be trained within")
    assert "--dask-scheduler" in attempts(outside)[-1]["message"]


def test_the_memory_of_whoever_leads_is_not_held_against_the_workers_of_a_cluster(
    cluster: Path, single: Path, tmp_path: Path
) -> None:
    run = planned(tmp_path / "run", 2, *TREES, *NO_ANALYSES)
    succeed("train-instance", "--quiet", "--dask-scheduler", cluster, run, "0", env={"SLURM_MEM_PER_NODE": "200"})
    assert usage_of(run)["rung"] == "distributed"
    assert trees(run) == trees(single)


@pytest.mark.filterwarnings("ignore")  # XGBoost's own, at every try to connect
def test_workers_that_cannot_reach_one_another_say_so_and_are_not_tried_again(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", 2, *TREES, *NO_ANALYSES)
    nowhere = start("train-instance", "--quiet", "--listen", "192.0.2.1", run, "0")  # an address for documentation
    assert_refused(nowhere, 3, "nothing can listen on 192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    team = Team(Place(rank=0, size=2, tracker="127.0.0.1", port=port))
    with pytest.raises(InputError, match="cannot reach the others") as refused, team.connected():
        pytest.fail("connected to nothing")
    assert f"127.0.0.1:{port}" in str(refused.value.expected)
    assert "--listen" in str(refused.value.next_step)
