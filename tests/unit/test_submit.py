"""Which arrays submit makes, and what it does with sbatch: a small stand-in for Slurm's commands, no cluster."""

from __future__ import annotations

import json
import os
import re
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


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    run = tmp_path / "a run"  # with a blank, as people have them
    succeed(
        "plan", "--quiet", "--strategy", "multi-instance", "--genes-per-instance", "8", "--min-instances", "7",
        "--holdout-fraction", "0", "--n-folds", "2", "--n-estimators", "5", DEMO, run,
    )  # fmt: skip
    return run


def a_site(folder: Path, max_array: int = 1001, refuse: str = "") -> dict[str, str]:
    """Commands that answer as Slurm's do; sbatch writes down what it was asked and refuses scripts named `refuse`."""
    folder.mkdir()
    sbatch = f"""#!/bin/sh
case " $* " in *"/{refuse or "-"}.sh "*) echo "sbatch: error: no such partition" >&2; exit 1 ;; esac
printf '%s\\n' "$@" >> {folder}/asked; echo >> {folder}/asked
n=$(($(cat {folder}/number 2>/dev/null || echo 100) + 1)); echo $n > {folder}/number; echo "$n;cluster"
"""
    squeue = f"""#!/bin/sh
for job in $(seq 101 "$(cat {folder}/number 2>/dev/null || echo 100)"); do
  for task in $(seq 0 6); do echo "$job|$task|PENDING|Priority|"; done
  echo "$job|N/A|PENDING|Dependency|"
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
