"""Which arrays submit makes, and what it does with sbatch: a small stand-in for Slurm's commands, no cluster."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabatch.cluster.submit import _arrays, array_spec
from tests.conftest import DEMO, start, succeed


@dataclass(frozen=True)
class Planned:
    index: int


def numbers_of(spec: str) -> list[int]:
    found = []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_an_array_specification_names_exactly_its_tasks(numbers: set[int]) -> None:
    assert numbers_of(array_spec(sorted(numbers))) == sorted(numbers)


@given(
    st.dictionaries(st.integers(0, 3000), st.sampled_from([500, 800, 1200]), min_size=1, max_size=200),
    st.integers(1, 1001),
)
def test_every_instance_is_in_one_array_of_its_memory_whose_task_numbers_the_site_allows(
    wanted: dict[int, int], limit: int
) -> None:
    arrays = _arrays([(Planned(i), mb) for i, mb in wanted.items()], limit)  # type: ignore[misc]
    seen = [i for array in arrays for i in array.instances]
    assert sorted(seen) == sorted(wanted)
    for array in arrays:
        assert {wanted[i] for i in array.instances} == {array.mem_mb}
        assert all(0 <= i - array.first < limit for i in array.instances)


@pytest.fixture(scope="module")
def plan_of_seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("planned") / "run"
    succeed(
        "plan", "--quiet", "--strategy", "multi-instance", "--genes-per-instance", "8", "--min-instances", "7",
        "--holdout-fraction", "0", "--n-folds", "2", "--n-estimators", "5", DEMO, run,
    )  # fmt: skip
    return run


@pytest.fixture
def planned(plan_of_seven: Path, tmp_path: Path) -> Path:
    """A run of seven instances, its name with a blank, as people have them."""
    return Path(shutil.copytree(plan_of_seven, tmp_path / "a run"))


def a_site(
    folder: Path, max_array: int = 1001, refuse: str = "", states: dict[str, str] | None = None, deaf: bool = False
) -> dict[str, str]:
    """Commands that answer as Slurm's do; sbatch writes down what it was asked and refuses scripts named `refuse`.

    `states`: of jobs (``101``, ``101_4``) that are not PENDING; `deaf`: the controller does not answer squeue.
    """
    folder.mkdir(exist_ok=True)
    known = "".join(f"{job}) echo {state} ;; " for job, state in (states or {}).items())
    sbatch = f"""#!/bin/sh
case " $* " in *"/{refuse or "-"}.sh "*) echo "sbatch: error: no such partition" >&2; exit 1 ;; esac
printf '%s\\n' "$@" >> {folder}/asked; echo >> {folder}/asked
n=$(($(cat {folder}/number 2>/dev/null || echo 100) + 1)); echo $n > {folder}/number; echo "$n;cluster"
"""
    squeue = f"""#!/bin/sh
{"echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1" if deaf else ""}
state() {{ case $1 in {known} *) echo PENDING ;; esac; }}
for job in $(seq 101 "$(cat {folder}/number 2>/dev/null || echo 100)"); do
  for task in $(seq 0 6); do echo "$job|$task|$(state "${{job}}_$task")|Priority|"; done
  echo "$job|N/A|$(state "$job")|Dependency|"
done
"""
    scontrol = f"#!/bin/sh\necho 'MaxArraySize            = {max_array}'\n"
    for name, text in (("sbatch", sbatch), ("squeue", squeue), ("scontrol", scontrol)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def asked(folder: Path) -> Sequence[list[str]]:
    return [job.splitlines() for job in (folder / "asked").read_text().strip().split("\n\n")]


def test_arrays_stay_below_the_size_the_site_allows_and_the_next_stage_waits_for_all(
    planned: Path, tmp_path: Path
) -> None:
    env = a_site(tmp_path / "site", max_array=3)
    succeed("submit", "--quiet", "--throttle", "2", planned, env=env)
    *arrays, consolidate, evaluate = asked(tmp_path / "site")
    tasks = [next(w for w in job if w.startswith("--array")) for job in arrays]
    assert tasks == ["--array=0-2%2", "--array=0-2%2", "--array=0%2"]
    first = [re.findall(r"METABATCH_FIRST_INSTANCE=(\d+)", " ".join(job)) for job in arrays]
    assert first == [[], ["3"], ["6"]]
    assert "--dependency=afterok:101:102:103" in consolidate
    assert "--dependency=afterok:104" in evaluate
    assert "--kill-on-invalid-dep=yes" in evaluate
    assert all(str(planned.resolve()) in job for job in asked(tmp_path / "site"))


def test_what_waits_in_the_queue_is_not_submitted_again(planned: Path, tmp_path: Path) -> None:
    env = a_site(tmp_path / "site")
    succeed("submit", "--quiet", planned, env=env)
    before = asked(tmp_path / "site")
    assert len(before) == 3
    again = succeed("submit", planned, env=env).out
    assert "instance 6 is on its way: job 101_6 PENDING (Priority)" in again
    assert "evaluate is on its way: job 103" in again
    assert asked(tmp_path / "site") == before
    found = succeed("status", "--json", planned, env=env).json
    assert {i["state"] for i in found["instances"]} == {"queued"}


def test_a_job_that_slurm_refuses_is_said_in_its_words_and_those_before_stay_on_record(
    planned: Path, tmp_path: Path
) -> None:
    env = a_site(tmp_path / "site", refuse="consolidate")
    outcome = start("submit", "--quiet", planned, env=env)
    assert outcome.code == 3
    assert "sbatch refused: sbatch: error: no such partition" in outcome.err
    assert "Traceback" not in outcome.err
    records = [json.loads(line) for line in (planned / "submissions.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["train"]
    a_site(tmp_path / "site-2")
    (tmp_path / "site-2/number").write_text("101")  # the training array is still known there
    succeed("submit", "--quiet", planned, env={"PATH": f"{tmp_path / 'site-2'}:{os.environ['PATH']}"})
    consolidate, _ = asked(tmp_path / "site-2")
    assert "--dependency=afterok:" + ":".join(f"101_{i}" for i in range(7)) in consolidate


def ended(run: Path, index: int, job: str | None, outcome: str = "interrupted", limit_mb: int = 400) -> None:
    """An attempt on record, as train-instance leaves it."""
    folder = run / f"instances/{index:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    made = json.loads((run / "plan.json").read_text())
    record = {
        "attempt": 1, "started": "2099-01-01T00:00:00+00:00", "ended": "2099-01-01T00:00:00+00:00", "outcome": outcome,
        "plan": made["fingerprint"], "rung": "in-memory", "host": "n1", "slurm_job_id": job,
        "predicted_peak_bytes": 1 << 28, "limit_bytes": limit_mb << 20, "measured_peak_bytes": 1 << 28,
    }  # fmt: skip
    with (folder / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def memory_of(job: list[str]) -> int:
    """MiB that a job asked for."""
    return int(next(w for w in job if w.startswith("--mem="))[6:-1])


def test_after_a_kill_for_memory_half_as_much_again_is_asked_for(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    succeed("submit", "--quiet", planned, env=a_site(site))
    killed = {f"101_{i}": "COMPLETED" for i in range(7)} | {"101_2": "OUT_OF_MEMORY", "102": "OUT_OF_MEMORY"}
    env = a_site(site, states=killed | {"103": "CANCELLED"})
    instances = succeed("status", "--json", planned, env=env).json["instances"]
    assert instances[2]["state"] == "failed"
    assert "killed by Slurm for memory (job 101_2 OUT_OF_MEMORY)" in instances[2]["detail"]
    train, consolidate, evaluate = (memory_of(job) for job in asked(site))
    ended(planned, 4, None, "out-of-memory", limit_mb=1000)
    ended(planned, 4, None, "interrupted", limit_mb=1500)  # more was given then; it is asked for again
    succeed("submit", "--quiet", planned, env=env)
    again = [job for job in asked(site)[3:] if "--array=2" in job or "--array=4" in job]
    assert [memory_of(job) for job in again] == [math.ceil(train * 1.5), 1500]
    assert [memory_of(job) for job in asked(site)[-2:]] == [math.ceil(consolidate * 1.5), evaluate]


def test_a_job_that_waits_is_seen_whoever_worked_on_the_instance_since(planned: Path, tmp_path: Path) -> None:
    """By hand; in a session's job that still runs (555); in an earlier array."""
    site = tmp_path / "site"
    env = a_site(site)
    succeed("submit", "--quiet", planned, env=env)
    for index, job in enumerate((None, "555", "99_2")):
        ended(planned, index, job)
    assert "nothing to submit" in succeed("submit", planned, env=env).out
    assert len(asked(site)) == 3


def test_a_session_in_which_somebody_tried_an_instance_is_not_its_job(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    env = a_site(site)
    (site / "number").write_text("101")
    ended(planned, 0, "101")  # a job of Slurm's, at work or waiting, but not one for this instance
    succeed("submit", "--quiet", planned, env=env)
    assert "--array=0-6" in asked(site)[0]


def test_without_an_answer_from_slurm_nothing_is_submitted_twice(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    succeed("submit", "--quiet", planned, env=a_site(site))
    env = a_site(site, deaf=True)
    outcome = start("submit", planned, env=env)
    assert outcome.code == 3
    assert "Slurm cannot be asked" in outcome.err
    assert "Socket timed out" in outcome.err
    assert len(asked(site)) == 3
    assert "its jobs are not known: slurm_load_jobs error" in succeed("status", planned, env=env).out


def test_a_plan_is_not_replaced_while_its_jobs_are_in_the_queue(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    env = a_site(site)
    succeed("submit", "--quiet", planned, env=env)
    before = (planned / "plan.json").read_bytes()
    outcome = start("plan", "--quiet", "--force", DEMO, planned, env=env)
    assert outcome.code == 5
    assert "scancel 101 102 103" in outcome.err
    assert (planned / "plan.json").read_bytes() == before


def test_a_record_after_one_that_was_cut_short_is_read(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (planned / "submissions.jsonl").write_text('{"submitted": "2026-')
    env = a_site(site)
    succeed("submit", "--quiet", planned, env=env)
    assert "nothing to submit" in succeed("submit", planned, env=env).out


def test_a_dry_run_prints_the_lines_and_leaves_no_trace(planned: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    env = a_site(site)
    before = sorted(planned.rglob("*"))
    lines = succeed("submit", "--dry-run", planned, env=env).out.splitlines()
    assert [re.findall(r"jobs/([a-z]+)\.sh", line) for line in lines] == [["train"], ["consolidate"], ["evaluate"]]
    assert all(line.startswith("sbatch ") for line in lines)
    assert sorted(planned.rglob("*")) == before
    assert not (site / "asked").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--throttle", "0"), "--throttle 0 cannot be used"),
        (("--sbatch", "--array=0-3"), "submit sets this itself"),
        (("--sbatch", "--mem=20M"), "submit sets this itself"),
        (("--sbatch", "-M other"), "other clusters"),
        (("--sbatch", "--clusters=other"), "other clusters"),
        (("--sbatch", "--comment='x"), "--sbatch cannot be read"),
        (("--checkpoint-seconds", "often"), "--checkpoint-seconds"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_submitted(
    planned: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    outcome = start("submit", *words, planned, env=a_site(tmp_path / "site"))
    assert outcome.code == 2
    assert said in outcome.err
    assert not (tmp_path / "site/asked").exists()


def test_without_slurm_submit_says_what_to_use_instead(planned: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for name in ("sh", "dirname", "readlink", "env", "python3"):
        for place in os.environ["PATH"].split(":"):
            if (Path(place) / name).exists() and not (empty / name).exists():
                (empty / name).symlink_to(Path(place) / name)
    outcome = start("submit", planned, env={"PATH": str(empty)})
    assert outcome.code == 3
    assert "there is no Slurm here" in outcome.err
    assert "bin/run-all" in outcome.err
