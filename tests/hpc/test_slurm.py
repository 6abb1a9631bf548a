"""On a real Slurm: the whole chain, and everything that happens to jobs on the way, ends with the same models."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import DEMO, succeed
from tests.hpc.conftest import Cluster, models

MANY = (
    "plan --quiet --analyses none --strategy multi-instance --genes-per-instance 8 --min-instances 7 "
    "--holdout-fraction 0 --n-folds 2 --learning-rate 0.3 --early-stopping-patience 0 --n-estimators 100"
)
SINGLE = (
    "plan --quiet --analyses none --strategy single --n-folds 2 --learning-rate 0.3 --early-stopping-patience 0 "
    "--n-estimators"
)


def planned(cluster: Cluster, words: str, name: str = "run") -> Path:
    cluster.ok(f"{cluster.house}/bin/{words} {cluster.house}/examples/hg19-demo {name}")
    return cluster.place / name


def state(cluster: Cluster, run: Path) -> dict[str, object]:
    return json.loads(cluster.ok(f"{cluster.house}/bin/status --json {run}").out)


def jobs_of(run: Path) -> dict[str, str]:
    records = [json.loads(line) for line in (run / "submissions.jsonl").read_text().splitlines()]
    return {r["stage"]: r["job_id"] for r in records}


def attempts(run: Path, index: int = 0) -> list[dict[str, object]]:
    file = run / f"instances/{index:02d}/attempts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("way", ["natively", "from the SIF"])
def test_the_chain_of_an_ordinary_user_ends_with_seven_of_seven_within_the_memory_it_asked_for(
    cluster: Cluster, way: str, request: pytest.FixtureRequest
) -> None:
    image = None if way == "natively" else request.getfixturevalue("sif")
    run = planned(cluster, MANY)
    plan = json.loads((run / "plan.json").read_text())
    assert len(plan["instances"]) == 7
    lines = cluster.ok(f"{cluster.house}/bin/submit --dry-run {run}").out
    assert "--array=0-6" in lines
    assert not (run / "submissions.jsonl").exists()
    cluster.ok(f"{cluster.house}/bin/submit --quiet {run}", image=image)
    jobs = jobs_of(run)
    assert "is on its way" in cluster.ok(f"{cluster.house}/bin/submit {run}").out  # nothing is submitted twice
    cluster.wait_for_state(jobs["evaluate"], {"COMPLETED"}, seconds=600)
    found = state(cluster, run)
    assert [i["state"] for i in found["instances"]] == ["done"] * 7  # type: ignore[attr-defined, index]
    assert (found["ensemble"], found["evaluation"]) == ("done", "done")
    for index, instance in enumerate(plan["instances"]):
        job = cluster.job(f"{jobs['train']}_{index}")
        assert job["JobState"] == "COMPLETED"
        usage = json.loads((run / f"instances/{index:02d}/resource_usage.json").read_text())
        request = max(p["mem_request_mb"] for p in plan["instances"]) << 20
        assert "cgroup" in usage["limit_source"]
        assert usage["limit_bytes"] == request  # what Slurm enforced is what the plan asked for
        assert usage["peak_anonymous_bytes"] < instance["mem_request_mb"] << 20
    assert len(list((run / "logs").glob("train-*.log"))) == 7
    log = (run / "logs" / f"train-{jobs['train']}_3.log").read_text()
    assert re.search(r"train-instance .* 3 .*on n[123], job \d+, task 3, restart 0", log)
    assert "nothing to submit" in cluster.ok(f"{cluster.house}/bin/submit {run}").out


def begun(cluster: Cluster, trees: int, sbatch: str = "") -> tuple[Path, str]:
    """An instance that trains on the cluster and has kept something; its run and array task."""
    run = planned(cluster, f"{SINGLE} {trees}")
    words = f"--parsable --array=0 --mem=600M {sbatch} {cluster.house}/jobs/train.sh {run} --checkpoint-seconds 0"
    number = cluster.ok(f"sbatch {words}").out.strip()
    cluster.wait(lambda: bool(list((run / "instances/00/checkpoints").glob("*.ckpt"))), "a checkpoint")
    return run, f"{number}_0"


@pytest.fixture
def at_work(cluster: Cluster) -> tuple[Path, str]:
    return begun(cluster, 150)


def without_a_cluster(run: Path, trees: int) -> dict[str, str]:
    """The same models trained by hand and undisturbed."""
    succeed(*SINGLE.split(), str(trees), DEMO, run)
    succeed("train-instance", "--quiet", run, "0")
    return models(run)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return without_a_cluster(tmp_path_factory.mktemp("undisturbed") / "run", 150)


def finish(cluster: Cluster, run: Path, task: str, undisturbed: dict[str, str]) -> None:
    cluster.wait_for_state(task, {"COMPLETED"}, seconds=300)
    assert models(run) == undisturbed
    assert state(cluster, run)["instances"][0]["state"] == "done"  # type: ignore[index]
    assert json.loads((run / "instances/00/resource_usage.json").read_text())["restored_rounds"] > 0


def test_a_job_asked_to_stop_before_its_time_limit_goes_back_into_the_queue_by_itself(
    cluster: Cluster, at_work: tuple[Path, str], undisturbed: dict[str, str]
) -> None:
    """What `--signal=B:TERM@120` sends: TERM to the batch shell alone."""
    run, task = at_work
    cluster.ok(f"scancel --signal=TERM --batch {task}")
    cluster.wait(lambda: cluster.job(task)["Restarts"] == "1", "a requeue")
    assert attempts(run)[0]["outcome"] == "interrupted"
    finish(cluster, run, task, undisturbed)
    assert [a["outcome"] for a in attempts(run)] == ["interrupted", "done"]


def test_every_task_of_an_array_that_is_asked_to_stop_goes_back_into_the_queue_for_itself(cluster: Cluster) -> None:
    """The last task's own number is that of the whole array: it must not requeue the others, nor stay away."""
    run = planned(cluster, MANY.replace("--genes-per-instance 8 --min-instances 7", "--genes-per-instance 14"))
    count = len(json.loads((run / "plan.json").read_text())["instances"])
    words = f"--parsable --array=0-{count - 1} --cpus-per-task=1 --mem=500M {cluster.house}/jobs/train.sh {run}"
    number = cluster.ok(f"sbatch {words} --checkpoint-seconds 0").out.strip()
    tasks = [f"{number}_{i}" for i in range(count)]
    assert count >= 3
    for index in range(count):
        kept = run / f"instances/{index:02d}/checkpoints"
        cluster.wait(lambda kept=kept: bool(list(kept.glob("*.ckpt"))), f"a checkpoint of instance {index}")
    cluster.ok(f"scancel --signal=TERM --batch {number}")
    for index, task in enumerate(tasks):
        cluster.wait(lambda task=task: cluster.job(task)["Restarts"] == "1", f"a requeue of {task}")
        cluster.wait_for_state(task, {"COMPLETED"}, seconds=300)
        assert [a["outcome"] for a in attempts(run, index)] == ["interrupted", "done"]


def test_a_job_that_its_time_limit_cuts_off_again_and_again_gets_there(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm looks twice a minute; with a limit of 2 minutes and TERM 75 s before, it stops it after 15 to 45 s."""
    run, task = begun(cluster, 400, sbatch="--time=2 --signal=B:TERM@75")
    cluster.wait(lambda: int(cluster.job(task)["Restarts"]) >= 1, "a requeue")
    assert attempts(run)[0]["outcome"] == "interrupted"
    assert "metabatch: back into the queue" in (cluster.place / f"metabatch-train-{task}.log").read_text()
    cluster.wait_for_state(task, {"COMPLETED"}, seconds=400)
    finish(cluster, run, task, without_a_cluster(tmp_path / "run", 400))


def test_a_requeued_job_goes_on(cluster: Cluster, at_work: tuple[Path, str], undisturbed: dict[str, str]) -> None:
    run, task = at_work
    cluster.ok(f"scontrol requeue {task}")
    finish(cluster, run, task, undisturbed)


def test_a_preempted_job_goes_on(cluster: Cluster, at_work: tuple[Path, str], undisturbed: dict[str, str]) -> None:
    run, task = at_work
    cluster.ok("sbatch --partition=high --nodes=3 --exclusive --output=/dev/null --wrap 'sleep 5'")
    cluster.wait(lambda: cluster.job(task)["Restarts"] == "1", "preemption")
    finish(cluster, run, task, undisturbed)


def test_a_cancelled_job_stays_cancelled_and_submit_goes_on_with_it(
    cluster: Cluster, at_work: tuple[Path, str], undisturbed: dict[str, str]
) -> None:
    run, task = at_work
    cluster.ok(f"scancel {task}")
    cluster.wait_for_state(task, {"CANCELLED"})
    time.sleep(8)
    assert cluster.job(task)["JobState"] == "CANCELLED"  # it did not put itself back
    found = state(cluster, run)["instances"][0]  # type: ignore[index]
    assert found["state"] == "interrupted"
    assert "cancelled" in found["detail"]
    cluster.ok(f"{cluster.house}/bin/submit --quiet {run}")
    finish(cluster, run, f"{jobs_of(run)['train']}_0", undisturbed)


def test_a_job_whose_node_went_down_goes_on_elsewhere(
    cluster: Cluster, at_work: tuple[Path, str], undisturbed: dict[str, str]
) -> None:
    """slurmd and all that it had started are killed, as when a machine loses its power."""
    run, task = at_work
    node, job = cluster.job(task)["NodeList"], cluster.job(task)["JobId"]
    subprocess.run(["pkill", "-KILL", "-f", f"slurmd.*-N *{node}( |$)"], check=False)
    subprocess.run(["pkill", "-KILL", "-f", f"slurmstepd: \\[{job}"], check=False)
    subprocess.run(["pkill", "-KILL", "-u", "hpcuser"], check=False)
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"], check=True)
    cluster.wait(lambda: cluster.job(task)["Restarts"] == "1", "a requeue")
    finish(cluster, run, task, undisturbed)
    assert [a["outcome"] for a in attempts(run)] == ["killed", "done"]


def shrink(job: str, size: int) -> bool:
    """Lower the kernel's limit of a running job (cgroup v1 or v2) below what it needs; whether it was there."""
    folders = Path("/sys/fs/cgroup").glob(f"**/*job_{job}")
    places = [f for d in folders for f in (d / "memory.limit_in_bytes", d / "memory.max") if f.exists()]
    for file in places:
        file.write_text(str(size))
    return bool(places)


def test_a_task_killed_for_memory_is_reported_as_such_and_its_resubmission_asks_for_more(cluster: Cluster) -> None:
    """The job finds the memory it asked for, and its cgroup then gives it less than the trainer needs.

    The trainer is a step of the job: Slurm notes what was killed in its log, and the job as a whole as failed.
    """
    run = planned(cluster, f"{SINGLE} 25")
    cluster.ok(f"{cluster.house}/bin/submit --quiet {run}")
    train = jobs_of(run)["train"]
    cluster.wait((run / "instances/00/lease.json").exists, "the owner of the instance")
    assert shrink(cluster.job(f"{train}_0")["JobId"], 80 << 20)
    cluster.wait_for_state(f"{train}_0", {"OUT_OF_MEMORY", "FAILED"})
    assert "oom-kill event(s)" in (run / f"logs/train-{train}_0.log").read_text()
    found = state(cluster, run)["instances"][0]  # type: ignore[index]
    assert found["state"] == "failed"
    assert "killed by the kernel's OOM killer" in found["detail"]
    assert {a["outcome"] for a in attempts(run)} == {"out-of-memory"}
    said = cluster.ok(f"{cluster.house}/bin/submit --quiet {run}").out
    memory = json.loads((run / "plan.json").read_text())["instances"][0]["mem_request_mb"]
    assert f"--mem={-(-memory * 3 // 2)}M" in said
    cluster.wait_for_state(jobs_of(run)["evaluate"], {"COMPLETED"}, seconds=300)
    assert state(cluster, run)["evaluation"] == "done"
