"""Short of memory, an instance goes on more cheaply by itself, says so, and gives the same models."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from tests.conftest import DEMO, NO_ANALYSES, QUICK, ROOT, Outcome, plan_of, start, succeed

MEMLIMIT = ROOT.parent / "shared" / "hpc" / "memlimit.sh"
needs_limits = pytest.mark.skipif(
    not MEMLIMIT.is_file() or os.geteuid() != 0, reason="needs root and ../shared/hpc/memlimit.sh for a kernel limit"
)
# The user's own figure, far too low: it makes the plan try what cannot fit.
FOOLED = ("--memory-per-gene-mb", "0.1")
FOLDS = (
    "--n-folds",
    "2",
    "--n-estimators",
    "2",
    "--holdout-fraction",
    "0",
    "--early-stopping-patience",
    "0",
    *NO_ANALYSES,
)
# Little more than the matrix: pages that do not fit the page cache are read from disk for every tree.
LEAN = ("--n-folds", "0", "--calibration", "none", "--n-estimators", "1", "--max-depth", "4",
        "--holdout-fraction", "0", *NO_ANALYSES)  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose matrix takes 230 MB: too much for 360 MB with everything else, and little from disk."""
    place = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(1)
    for shard in range(4):
        rows = 30_000
        label = rng.choice(3, rows, p=[0.9, 0.05, 0.05])
        columns = {f"x{i:03d}": rng.integers(0, 200, rows, dtype=np.uint8) for i in range(900)}
        columns["x000"] = (columns["x000"] // 4 + 60 * label).astype(np.uint8)
        genes = np.repeat([f"G{shard}{i:03d}" for i in range(30)], rows // 30)
        frame = pl.DataFrame(
            {"gene_id": genes, "splice_type": np.array(["neither", "donor", "acceptor"])[label], **columns}
        )
        frame.write_parquet(place / f"part-{shard}.parquet", row_group_size=8_192, compression="lz4")
    return place


@pytest.fixture(scope="module")
def unlimited(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wide table trained with all the memory it wants."""
    run = tmp_path_factory.mktemp("unlimited") / "run"
    succeed("plan", "--quiet", "--strategy", "single", *LEAN, wide, run)
    succeed("train-instance", "--quiet", run, "0")
    return run


def under(limit: str, *words: str | Path) -> tuple[Outcome, dict[str, int]]:
    """Run an executable under a hard kernel limit; what it did, and the kernel's figures."""
    command = [str(MEMLIMIT), limit, str(ROOT / "bin" / words[0]), *map(str, words[1:])]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    line = next(x for x in done.stderr.splitlines() if x.startswith("memlimit: limit"))
    figures = {k: int(v) for k, v in (word.split("=") for word in line.split()[1:])}
    return Outcome(done.returncode, done.stdout, done.stderr), figures


def attempts(run: Path, index: int = 0) -> list[dict[str, Any]]:
    lines = (run / "instances" / f"{index:02d}" / "attempts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same_models(a: Path, b: Path) -> bool:
    names = ("neither.ubj", "donor.ubj", "acceptor.ubj", "calibration.json")
    return all(
        (a / "instances/00/model" / n).read_bytes() == (b / "instances/00/model" / n).read_bytes() for n in names
    )


@needs_limits
def test_a_kernel_oom_kill_is_survived_and_the_models_are_the_same(wide: Path, unlimited: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", "single", *FOOLED, *LEAN, wide, run)
    outcome, figures = under("360M", "train-instance", run, "0")
    assert outcome.code == 0, outcome.err
    assert figures["oom_kills"] >= 1
    record = attempts(run)
    assert [(a["rung"], a["outcome"]) for a in record] == [("in-memory", "out-of-memory"), ("external", "done")]
    assert record[0]["limit_bytes"] == 360 << 20
    assert "OOM killer" in record[0]["message"]
    assert record[0]["measured_peak_bytes"] > 200 << 20
    assert same_models(run, unlimited)
    # A second start, after the result is lost, begins below what is known to be too much.
    (run / "instances/00/done.json").unlink()
    again, figures = under("360M", "train-instance", run, "0")
    assert (again.code, figures["oom_kills"]) == (0, 0)
    assert "too much memory before" in again.err


@needs_limits
def test_what_is_predicted_not_to_fit_is_not_tried(wide: Path, unlimited: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", "single", *LEAN, wide, run)
    planned = plan_of(run)["instances"][0]["predicted_peak_bytes"]
    outcome, figures = under("360M", "train-instance", run, "0")
    assert outcome.code == 0, outcome.err
    assert figures["oom_kills"] == 0
    record = attempts(run)
    assert [(a["rung"], a["outcome"]) for a in record] == [("in-memory", "not-tried"), ("external", "done")]
    assert planned > 360 << 20
    assert "cgroup" in record[0]["message"]
    assert same_models(run, unlimited)


def test_a_child_above_the_budget_is_stopped_and_goes_on_more_cheaply(
    wide: Path, unlimited: Path, tmp_path: Path
) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    succeed("plan", "--quiet", "--strategy", "single", "--max-memory-per-instance-gb", "0.33", *FOOLED, *LEAN,
            wide, run)  # fmt: skip
    outcome = succeed("train-instance", run, "0", env={"TMPDIR": str(scratch)})
    assert [(a["rung"], a["outcome"]) for a in attempts(run)] == [("in-memory", "over-budget"), ("external", "done")]
    assert "was stopped" in outcome.err
    assert same_models(run, unlimited)
    assert list(scratch.iterdir()) == []
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    assert usage["rung"] == "external"
    assert usage["measured_peak_bytes"] <= usage["budget_bytes"]
    state = succeed("status", "--json", run).json["instances"][0]
    assert (state["state"], state["attempts"]) == ("done", 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 genes whose histograms, for deep trees, outweigh everything else: fewer rows have fewer nodes."""
    place = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(2)
    genes, per_gene = 500, 160
    n = genes * per_gene
    within = np.arange(n) % per_gene
    label = np.where(within < 6, 1, np.where(within < 12, 2, 0))
    frame = pl.DataFrame(
        {
            "gene_id": np.repeat([f"G{i:04d}" for i in range(genes)], per_gene),
            "position": np.tile(np.arange(per_gene), genes),
            "splice_type": np.array(["neither", "donor", "acceptor"])[label],
            "signal": (label + rng.normal(0, 0.5, n)).astype(np.float32).round(2),
            **{f"noise{i}": rng.integers(0, 250, n).astype(np.uint8) for i in range(40)},
        }
    )
    frame.write_parquet(place / "part.parquet", row_group_size=16_384)
    return place


def test_genes_are_trained_in_parts_when_nothing_else_fits_and_everyone_is_told(many: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", "single", *FOLDS, "--max-depth", "14", many, run)
    law = plan_of(run)["memory_law"]
    nodes = 80_000 // 16
    # Three quarters of what the histograms of all rows would take, so that those of half of them fit.
    limit_mb = (law["fixed_anonymous_bytes"] + round(0.75 * nodes * law["node_bytes"])) >> 20
    outcome = start("train-instance", run, "0", env={"SLURM_MEM_PER_NODE": str(limit_mb)})
    assert outcome.code == 0, outcome.err
    record = [(a["rung"], a["outcome"]) for a in attempts(run)]
    assert record[:3] == [(r, "not-tried") for r in ("in-memory", "external", "external, small batches")]
    assert record[-1] == ("external, 2 parts", "done")
    folder = run / "instances/00"
    assert {p.name for p in (folder / "model").iterdir()} == {"part-0", "part-1"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert sum(p["genes"] for p in metrics["parts"]) == metrics["genes"] == 500
    assert abs(metrics["parts"][0]["rows"] - metrics["parts"][1]["rows"]) <= 0.05 * 80_000
    oof = pl.read_parquet(folder / "oof.parquet")
    assert oof.height == oof.select("gene_id", "position").n_unique() == 80_000
    assert oof["donor_meta"].null_count() == 0
    assert metrics["classes"]["donor"]["ap"] > 0.1
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)
    bundle = json.loads((run / "ensemble/bundle.json").read_text())
    assert [(x["option"][:5], x["value"]) for x in bundle["lowered"]] == [("parts", 2.0)]
    assert "parts in which the genes of instance 0 were trained" in (run / "evaluation/report.html").read_text()
    predictions = tmp_path / "predictions"
    succeed("predict", "--quiet", run, many, predictions)
    assert pl.read_parquet(next(predictions.glob("*.parquet"))).height == 80_000
    # With more memory they are trained together; nothing of the parts stays, not even when the marker is lost.
    (folder / "done.json").unlink()
    succeed("train-instance", "--quiet", "--force", run, "0")
    assert {p.name for p in (folder / "model").iterdir()} == {
        "neither.ubj", "donor.ubj", "acceptor.ubj", "calibration.json",
    }  # fmt: skip
    succeed("consolidate", "--quiet", run)
    assert not list((run / "ensemble").rglob("part-*"))
    assert json.loads((run / "ensemble/bundle.json").read_text())["lowered"] == []


def test_when_no_rung_fits_the_exit_code_is_4_and_every_rung_is_on_record(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", *QUICK, DEMO, run)
    outcome = start("train-instance", run, "0", env={"SLURM_MEM_PER_NODE": "40"})
    assert outcome.code == 4
    assert "SLURM_MEM_PER_NODE=40" in outcome.err
    assert "needs more than" in outcome.err
    assert "attempts.jsonl" in outcome.err
    assert {a["outcome"] for a in attempts(run)} == {"not-tried"}
    assert {p.name for p in (run / "instances/00").iterdir()} == {"attempts.jsonl"}


def child_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # set-up's own, gone already
                if "metabatch.training.child" in " ".join(child.cmdline()):
                    return child
        time.sleep(0.05)
    raise AssertionError("no training child")


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A training that would go on for long; ended with the test."""
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-estimators", "5000", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run)
    words = [str(ROOT / "bin" / "train-instance"), str(run), "0"]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as process:
        yield run, process
        process.kill()


@pytest.mark.parametrize(
    ("sent", "code", "outcome", "said"),
    [
        (signal.SIGKILL, 75, "killed", b"killed by signal 9"),  # by somebody: to be run again
        (signal.SIGSEGV, 70, "failed", b"crashed (signal 11"),  # a fault: would end the same way again
    ],
)
def test_a_killed_and_a_crashed_child_are_told_apart_and_not_taken_for_out_of_memory(
    at_work: tuple[Path, subprocess.Popen[bytes]], sent: signal.Signals, code: int, outcome: str, said: bytes
) -> None:
    run, process = at_work
    child_of(process).send_signal(sent)
    assert process.wait(60) == code
    assert process.stderr is not None
    assert said in process.stderr.read()
    assert [(a["rung"], a["outcome"]) for a in attempts(run)] == [("in-memory", outcome)]
    state = succeed("status", "--json", run).json["instances"][0]
    assert (state["state"], state["rung"]) == ("failed", "in-memory")


def test_a_supervisor_killed_three_times_goes_one_rung_down(tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--n-estimators", "5000", "--early-stopping-patience", "0", "--strategy", "single",
            *NO_ANALYSES, DEMO, run)  # fmt: skip
    words = [str(ROOT / "bin" / "train-instance"), str(run), "0"]
    env = os.environ | {"METABATCH_PYTHON": sys.executable}
    rungs = []
    for _ in range(4):
        with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as process:
            child = child_of(process)
            rungs.append(json.loads((run / "instances/00/lease.json").read_text())["rung"])
            process.kill()
        psutil.wait_procs([child], timeout=20)
    assert rungs == ["in-memory"] * 3 + ["external"]
    record = [(a["rung"], a["outcome"]) for a in attempts(run)]
    assert record == [*[("in-memory", "killed")] * 3, ("in-memory", "not-tried")]


def test_a_child_dies_with_its_supervisor(at_work: tuple[Path, subprocess.Popen[bytes]]) -> None:
    _, process = at_work
    child = child_of(process)
    process.kill()
    process.wait()
    gone, _ = psutil.wait_procs([child], timeout=20)
    assert gone


def test_every_phase_reads_the_rows_of_the_sampled_genes_and_says_how_many(tmp_path: Path) -> None:
    """One gene a row group, so that no row of another gene has to be decoded."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    rng = np.random.default_rng(3)
    for shard in range(3):
        rows = 400
        label = np.tile([0] * 30 + [1] * 5 + [2] * 5, 10 * rows // 400)
        frame = pl.DataFrame(
            {
                "gene_id": np.repeat([f"G{shard}{i}" for i in range(10)], 40),
                "splice_type": np.array(["neither", "donor", "acceptor"])[label],
                "signal": (label + rng.normal(0, 0.5, rows)).astype(np.float32),
            }
        )
        frame.write_parquet(data / f"part-{shard}.parquet", row_group_size=40)
    said = succeed("plan", "--sample-genes", "10", "--holdout-fraction", "0", "--n-folds", "2", "--n-estimators", "5",
                   data, run)  # fmt: skip
    assert "leakage screen: 400 rows of 10 genes read for 400 asked" in said.err
    assert "feature scan: 400 rows read for 400 asked" in said.err
    assert plan_of(run)["dataset"]["positions"] == 400
    succeed("train-instance", "--quiet", run, "0")
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    read = {p["name"]: (p["rows_read"], p["rows_asked"], p["passes"]) for p in usage["phases"] if p["rows_read"]}
    analysed = read.pop("analysis")
    assert analysed[0] == analysed[1] <= 3 * 400  # SHAP, and two samples for importance
    assert read == {"rows": (400, 400, 1), "matrix": (400, 400, 1), "write": (400, 400, 1)}
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)
    usage = json.loads((run / "evaluation/resource_usage.json").read_text())
    assert all(p["rows_read"] == p["rows_asked"] <= 400 for p in usage["phases"])
