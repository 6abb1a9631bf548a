"""One model over the nodes of a real Slurm: submitted, killed, requeued, and the same in the end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil

from metabatch.resources.law import MemoryLaw
from tests.conftest import ROOT
from tests.hpc.conftest import Cluster, models

MAKER = ROOT / "benchmarks/reference_table.py"
AT_SIZE = (
    "plan --quiet --analyses none --n-folds 0 --calibration none --holdout-fraction 0.1 --n-estimators 40 "
    "--learning-rate 0.3"
)
WORDS = "plan --quiet --analyses none --n-folds 2 --learning-rate 0.3 --early-stopping-patience 0 --n-estimators 60"
THREE = "--strategy distributed --workers 3"


def planned(cluster: Cluster, name: str, strategy: str = THREE, words: str = WORDS, data: Path | None = None) -> Path:
    data = data or cluster.house / "examples/hg19-demo"
    cluster.ok(f"{cluster.house}/bin/{words} {strategy} {data} {shlex.quote(name)}")
    return cluster.place / name


def trees(run: Path) -> dict[str, str]:
    return {Path(name).name: digest for name, digest in models(run).items() if name.endswith(".ubj")}


def submitted(cluster: Cluster, run: Path, words: str = "", image: Path | None = None) -> dict[str, str]:
    cluster.ok(f"{cluster.house}/bin/submit --quiet {words} {shlex.quote(str(run))}", image=image)
    records = [json.loads(line) for line in (run / "submissions.jsonl").read_text().splitlines()]
    return {r["stage"]: r["job_id"] for r in records}


def processes(module: str, run: Path) -> list[psutil.Process]:
    """Dask's of this run, without the shells and containers they are started by."""
    return [
        p for p in psutil.process_iter(["cmdline"])
        if (words := p.info["cmdline"] or ()) and f"distributed.cli.{module}" in words and str(run) in " ".join(words)
        and Path(words[0]).name.startswith("python")
    ]  # fmt: skip


def test_workers_in_the_image_train_the_trees_of_single_also_after_a_stop_before_the_first(
    cluster: Cluster, sif: Path
) -> None:
    run = planned(cluster, "in the image")
    jobs = submitted(cluster, run, image=sif)
    task = f"{jobs['train']}_0"
    cluster.wait(lambda: bool(processes("dask_scheduler", run)), "a scheduler")
    cluster.ok(f"scancel --batch --signal=TERM {task}")
    cluster.wait(lambda: cluster.job(task)["Restarts"] == "1", "a requeue")
    cluster.wait_for_state(jobs["evaluate"], {"COMPLETED"}, seconds=400)
    assert cluster.job(f"{jobs['train']}_0")["NumNodes"] == "3"
    alone = planned(cluster, "alone", "--strategy single")
    cluster.ok(f"{cluster.house}/bin/train-instance --quiet {alone} 0")
    assert len(trees(run)) == 3
    assert trees(run) == trees(alone)


def test_three_workers_on_three_nodes_train_one_model_and_a_killed_one_costs_no_bit(cluster: Cluster) -> None:
    whole = planned(cluster, "whole")
    jobs = submitted(cluster, whole)
    cluster.wait_for_state(jobs["evaluate"], {"COMPLETED"}, seconds=400)
    assert cluster.job(f"{jobs['train']}_0")["NumNodes"] == "3"
    usage = json.loads((whole / "instances/00/resource_usage.json").read_text())
    assert len(usage["worker_peak_bytes"]) == 3
    assert max(usage["worker_peak_bytes"]) < 1.1 * usage["predicted_peak_bytes"]

    alone = planned(cluster, "alone", "--strategy single")
    cluster.ok(f"{cluster.house}/bin/train-instance --quiet {alone} 0")
    assert len(trees(whole)) == 3
    assert trees(whole) == trees(alone)

    run = planned(cluster, "a worker's end")
    jobs = submitted(cluster, run, "--checkpoint-seconds 0")
    task = f"{jobs['train']}_0"
    cluster.wait(lambda: len(list((run / "instances/00/checkpoints").glob("*.ckpt"))) > 1, "a checkpoint")
    workers = processes("dask_worker", run)
    assert len(workers) == 3
    workers[1].kill()
    cluster.wait(lambda: cluster.job(task)["Restarts"] == "1", "a requeue")
    cluster.wait_for_state(jobs["evaluate"], {"COMPLETED"}, seconds=400)
    attempts = [json.loads(line) for line in (run / "instances/00/attempts.jsonl").read_text().splitlines()]
    assert [a["outcome"] for a in attempts] == ["killed", "done"]
    assert "was lost" in attempts[0]["message"]
    assert models(run) == models(whole)
    assert json.loads((run / "instances/00/resource_usage.json").read_text())["restored_rounds"] > 0


def test_a_table_in_the_reference_shape_is_shared_out_at_a_third_of_its_matrix_each(cluster: Cluster) -> None:
    """2,000 genes x 1,167 features: some four minutes."""
    table = cluster.place / "table"
    subprocess.run([sys.executable, MAKER, table, "--genes", "2000"], check=True, env=os.environ | {"PYTHONPATH": ROOT})
    run = planned(cluster, "three", words=AT_SIZE, data=table)
    jobs = submitted(cluster, run)
    alone = planned(cluster, "alone", "--strategy single", AT_SIZE, table)
    cluster.wait_for_state(jobs["evaluate"], {"COMPLETED"}, seconds=500)
    assert cluster.job(f"{jobs['train']}_0")["NumNodes"] == "3"
    for stage in ("train-instance --quiet alone 0", "consolidate --quiet alone", "evaluate --quiet alone"):
        cluster.ok(f"{cluster.house}/bin/{stage}")
    assert trees(run) == trees(alone)
    ap = [json.loads((r / "evaluation/metrics.json").read_text())["meta"] for r in (run, alone)]
    assert all(abs(ap[0][c]["ap"] - ap[1][c]["ap"]) <= 0.003 for c in ("donor", "acceptor"))

    law = MemoryLaw(**json.loads((run / "plan.json").read_text())["memory_law"])
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    rows = json.loads((run / "plan.json").read_text())["instances"][0]["rows"]
    expected = law.matrix_bytes(rows) / 3 + law.fixed_bytes
    assert len(usage["worker_peak_bytes"]) == 3
    assert max(usage["worker_peak_bytes"]) < 1.15 * expected
