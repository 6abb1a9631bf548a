"""--device: what is said and refused where there is no GPU; and, where there is one, that it trains as good a model."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabatch.resources.gpu import CONTEXT_BYTES, cuda_is_built_in, device_bytes, visible_gpu
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.state import sbatch_line
from metabatch.training.ladder import rungs
from tests.conftest import DEMO, QUICK, models, plan_of, start, succeed

GPU = cuda_is_built_in() and visible_gpu()[0] is not None
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU, or an XGBoost without CUDA: nothing was trained on a GPU here")
without_cuda = pytest.mark.skipif(cuda_is_built_in(), reason="this XGBoost can use a GPU")
SINGLE = ("plan", "--quiet", "--strategy", "single", *QUICK)


def usage_of(run: Path) -> dict:
    return json.loads((run / "instances/00/resource_usage.json").read_text())


def test_a_plan_lists_the_gpu_with_what_it_would_need_of_it_and_why_it_is_not_taken(tmp_path: Path) -> None:
    said = succeed("plan", *QUICK, DEMO, tmp_path / "run").out
    (listed,) = [a for a in plan_of(tmp_path / "run")["alternatives"] if "--device cuda" in a["strategy"]]
    assert listed["predicted_peak_bytes"] > 700 << 20  # the context alone
    assert listed["relative_time"] is None
    assert listed["why_not"] in said
    if visible_gpu()[0] is None:
        assert "no GPU is to be seen" in listed["why_not"] or "CUDA_VISIBLE_DEVICES" in listed["why_not"]


@without_cuda
def test_a_gpu_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    refused = start(*SINGLE, "--device", "cuda", DEMO, tmp_path / "run")
    assert refused.code == 4
    assert "built for the CPU" in refused.err
    assert not (tmp_path / "run").exists()


@without_cuda
def test_auto_trains_the_same_trees_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    for device in ("cpu", "auto"):
        succeed(*SINGLE, "--device", device, DEMO, tmp_path / device)
    assert any("of a GPU's memory" in note for note in plan_of(tmp_path / "auto")["warnings"])
    said = succeed("train-instance", tmp_path / "auto", "0").err
    assert "trained on the CPU: this XGBoost is built for the CPU" in said
    succeed("train-instance", "--quiet", tmp_path / "cpu", "0")
    assert models(tmp_path / "auto") == models(tmp_path / "cpu")
    usage = usage_of(tmp_path / "auto")
    assert usage["device"] == "cpu"
    assert "built for the CPU" in usage["device_why"]


@pytest.mark.parametrize("strategy", ["external", "incremental", "distributed"])
def test_strategies_without_a_gpu_refuse_it(strategy: str, tmp_path: Path) -> None:
    refused = start("plan", "--quiet", "--strategy", strategy, "--device", "auto", DEMO, tmp_path / "run")
    assert refused.code == 2
    assert "--device auto cannot be had with" in refused.err


def test_a_plan_for_a_gpu_asks_slurm_for_one_and_has_no_way_on_by_the_cpu(tmp_path: Path) -> None:
    succeed(*SINGLE, "--device", "auto", DEMO, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    plan = open_plan(run)
    assert "--gres" not in sbatch_line(run, plan)
    on_gpu = msgspec.structs.replace(plan, options=msgspec.structs.replace(plan.options, device="cuda"))
    assert "--gres=gpu:1" in sbatch_line(run, on_gpu)
    assert [r.external for r in rungs(on_gpu, plan.instances[0])] == [False]
    assert any(r.external for r in rungs(plan, plan.instances[0]))


def test_the_gpu_asked_about_is_the_one_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "no nvidia-smi" in visible_gpu()[1]
    said = tmp_path / "nvidia-smi"
    said.write_text(
        '#!/bin/sh\ncase "$1" in --id=3) echo "NVIDIA X, 2048" ;; --id=*) exit 6 ;; *) echo "A, B, 1024" ;; esac\n'
    )
    said.chmod(0o755)
    gpu, _ = visible_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.free_bytes) == ("A, B", 1 << 30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    gpu, _ = visible_gpu()
    assert gpu is not None
    assert gpu.free_bytes == 2 << 30
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert visible_gpu()[0] is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides every GPU" in visible_gpu()[1]


@given(st.integers(1, 10**8), st.lists(st.integers(1, 256), min_size=1, max_size=50), st.integers(1, 12))
def test_what_a_gpu_needs_grows_with_the_rows_and_is_a_byte_a_cell_of_256_bins(
    rows: int, bins: list[int], depth: int
) -> None:
    dense, sparse = (device_bytes(rows, bins, depth, missing=missing) for missing in (False, True))
    assert CONTEXT_BYTES < dense <= sparse
    assert device_bytes(rows + 1, bins, depth, missing=False) > dense
    widest = [256] * len(bins)
    more = device_bytes(2 * rows, widest, 1, missing=False) - device_bytes(rows, widest, 1, missing=False)
    assert more >= rows * len(bins)


@needs_gpu
def test_a_gpu_trains_as_good_a_model_and_says_which_it_was(tmp_path: Path) -> None:
    scores = {}
    for device in ("cpu", "cuda"):
        succeed(*SINGLE, "--device", device, DEMO, tmp_path / device)
        succeed("train-instance", "--quiet", tmp_path / device, "0")
        scores[device] = pl.read_parquet(tmp_path / device / "instances/00/oof.parquet")
    assert usage_of(tmp_path / "cuda")["device"] == "cuda"
    a, b = (scores[device]["donor_meta"].to_numpy() for device in ("cpu", "cuda"))
    assert np.corrcoef(a, b)[0, 1] > 0.95
