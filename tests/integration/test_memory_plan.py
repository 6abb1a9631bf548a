"""What `plan` says of memory: tried on the data's own rows, learned from earlier runs, and said where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from metabatch.resources.limits import cpu_limits
from metabatch.rundir.publish import sha256_file
from tests.conftest import DEMO, NO_ANALYSES, QUICK, plan_of, small_table, start, succeed, write_table


def counts_table(folder: Path, rows: int, features: int, seed: int) -> Path:
    """60 genes with counts of 0 to 89, in row groups of 4,096 rows."""
    rng = np.random.default_rng(seed)
    label = np.tile([0] * 34 + [1] * 3 + [2] * 3, rows // 40)
    columns = {f"x{i:03d}": rng.integers(0, 90, rows, dtype=np.uint8) for i in range(features)}
    names = np.array(["neither", "donor", "acceptor"])[label]
    genes = np.repeat([f"G{i:03d}" for i in range(60)], rows // 60)
    return write_table(folder, pl.DataFrame({"gene_id": genes, "splice_type": names, **columns}), row_group=4_096)


def test_the_law_is_tried_on_rows_of_the_data_and_the_alternatives_say_what_they_cost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = succeed("plan", *QUICK, counts_table(tmp_path / "data", 24_000, 500, 5), run)
    plan = plan_of(run)
    probe, law = plan["probe"], plan["memory_law"]
    assert probe["rows"][0] < probe["rows"][1]
    assert probe["matrix_bytes"][0] < probe["matrix_bytes"][1]
    assert 0 < probe["tree_seconds"][1] < 60
    assert probe["resident_bytes"] <= law["fixed_bytes"] < probe["resident_bytes"] + (32 << 20)
    assert law["fixed_anonymous_bytes"] < law["fixed_bytes"]
    assert law["cell_bytes"] == pytest.approx(2.125, rel=0.1)
    by_name = {a["strategy"]: a for a in plan["alternatives"]}
    assert by_name["external"]["page_cache_bytes"] > plan["dataset"]["positions"] * law["features"]
    assert by_name["single"]["page_cache_bytes"] == 0
    assert by_name["external"]["relative_time"] > by_name["single"]["relative_time"] == 1.0
    assert plan_of_demo_needs_no_trial(tmp_path)
    assert "page cache" in said.out
    assert "memory probe" in said.err


def plan_of_demo_needs_no_trial(tmp_path: Path) -> bool:
    """Its matrix is smaller than the libraries vary."""
    succeed("plan", "--quiet", *QUICK, DEMO, tmp_path / "demo")
    return plan_of(tmp_path / "demo")["probe"] is None


def test_training_says_which_limit_counts(trained: Path, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(trained)
    said = start("train-instance", "--force", run, "0", env={"SLURM_MEM_PER_NODE": "3000"})
    assert said.code == 0, said.err
    assert "SLURM_MEM_PER_NODE=3000" in said.err
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    assert usage["limit_bytes"] == 3000 << 20
    assert usage["measured_peak_bytes"] == usage["peak_rss_bytes"] >= usage["peak_anonymous_bytes"] > 50 << 20


def test_threads_planned_elsewhere_do_not_exceed_the_cpus_here(tmp_path: Path) -> None:
    said = succeed("plan", "--threads", "64", *QUICK, DEMO, tmp_path / "run")
    assert "CPU" in said.out
    outcome = succeed("train-instance", tmp_path / "run", "0")
    usage = json.loads((tmp_path / "run/instances/00/resource_usage.json").read_text())
    assert usage["threads"] == min(64, cpu_limits()[0].count)
    assert cpu_limits()[0].source in outcome.err


def test_a_plan_learns_from_the_peaks_of_an_earlier_run(trained: Path, tmp_path: Path) -> None:
    usage = json.loads((trained / "instances/00/resource_usage.json").read_text())
    words = ("--holdout-fraction", "0.3", *QUICK, "--learn-from", trained, DEMO, tmp_path / "run")
    succeed("plan", "--quiet", *words)
    old, new = plan_of(trained), plan_of(tmp_path / "run")
    assert new["fingerprint"] == old["fingerprint"]
    # Its matrix is small: what it measured can raise what is fixed, and tells nothing of the bytes per cell.
    assert new["memory_law"]["cell_bytes"] == old["memory_law"]["cell_bytes"]
    assert new["instances"][0]["predicted_peak_bytes"] >= usage["measured_peak_bytes"]
    assert "already" in succeed("plan", *words).out + succeed("plan", *words).err


def test_a_law_that_was_wrong_is_put_right_by_what_a_run_measured(tmp_path: Path) -> None:
    data = counts_table(tmp_path / "data", 30_000, 1500, 8)
    words = ("--n-folds", "0", "--calibration", "none", "--n-estimators", "1", "--holdout-fraction", "0", *NO_ANALYSES)
    succeed("plan", "--quiet", *words, data, tmp_path / "old")
    succeed("train-instance", "--quiet", tmp_path / "old", "0")
    file = tmp_path / "old/instances/00/resource_usage.json"
    usage = json.loads(file.read_text())
    marker = tmp_path / "old/instances/00/done.json"
    done = json.loads(marker.read_text())
    for measured, low, high in ((1.3, 1.0, 1.02), (0.2, 0.8, 2.0)):
        peak = round(usage["measured_peak_bytes"] * measured)
        file.write_text(json.dumps(usage | {"measured_peak_bytes": peak}))
        done["files"]["resource_usage.json"] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        marker.write_text(json.dumps(done))
        new = tmp_path / f"new-{measured}"
        succeed("plan", "--quiet", *words, "--learn-from", tmp_path / "old", data, new)
        found = plan_of(new)
        assert found["instances"][0]["predicted_peak_bytes"] >= low * peak
        if high < 2:
            assert found["instances"][0]["predicted_peak_bytes"] <= high * peak + (32 << 20)
        else:  # a law is not lowered to nothing by one lucky run
            assert found["memory_law"]["cell_bytes"] >= 0.79 * plan_of(tmp_path / "old")["memory_law"]["cell_bytes"]


def test_learning_from_another_run_is_refused_with_the_reason(trained: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "data", small_table())
    other = start("plan", "--learn-from", trained, data, tmp_path / "a")
    assert other.code == 3
    assert "other data" in other.err
    depth = start("plan", "--max-depth", "3", "--learn-from", trained, DEMO, tmp_path / "b")
    assert depth.code == 3
    assert "max_depth" in depth.err
    succeed("plan", "--quiet", *QUICK, DEMO, tmp_path / "untrained")
    none = start("plan", *QUICK, "--learn-from", tmp_path / "untrained", DEMO, tmp_path / "c")
    assert none.code == 3
    assert "no instance of that run is done" in none.err
    both = start("plan", "--memory-per-gene-mb", "8", "--learn-from", trained, DEMO, tmp_path / "d")
    assert both.code == 2
    assert not any((tmp_path / name).exists() for name in "abcd")


@pytest.mark.parametrize("row_group", [32_768, 65_536])
def test_a_row_group_larger_than_the_budget_is_split_while_reading(tmp_path: Path, row_group: int) -> None:
    rng = np.random.default_rng(6)
    rows = 65_536
    label = np.tile([0] * 56 + [1] * 4 + [2] * 4, rows // 64)
    columns = {f"x{i:03d}": rng.standard_normal(rows, dtype=np.float32) for i in range(250)}
    names = np.array(["neither", "donor", "acceptor"])[label]
    genes = np.repeat([f"G{i:03d}" for i in range(64)], rows // 64)
    frame = pl.DataFrame({"gene_id": genes, "splice_type": names, **columns})
    data, run = write_table(tmp_path / "data", frame, shards=1, row_group=row_group), tmp_path / "run"
    words = ("--n-folds", "2", "--n-estimators", "3", "--holdout-fraction", "0", "--strategy", "external", *NO_ANALYSES)
    succeed("plan", "--quiet", *words, data, tmp_path / "free")
    wanted = plan_of(tmp_path / "free")["instances"][0]["predicted_peak_bytes"]
    less = wanted - (32 << 20) if row_group == 32_768 else wanted  # the large one is split anyway
    succeed("plan", "--quiet", *words, "--max-memory-per-instance-gb", f"{less / 2**30 + 1e-6:.6f}", data, run)
    planned = plan_of(run)
    assert planned["memory_law"]["group_rows"] == (32_768 if row_group == 32_768 else 16_384)
    assert planned["instances"][0]["batch_rows"] == (4_096 if row_group == 32_768 else 32_768)
    assert planned["instances"][0]["predicted_peak_bytes"] <= planned["budget"]["bytes"]
    succeed("train-instance", "--quiet", run, "0")
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    assert usage["rung"] == ("external, small batches" if row_group == 32_768 else "external")
    assert usage["measured_peak_bytes"] <= usage["budget_bytes"]
    assert json.loads((run / "instances/00/metrics.json").read_text())["rows"] == rows


def test_short_memory_leaves_out_shap_first_and_says_so_wherever_the_run_is_reported(tmp_path: Path) -> None:
    words = ("--strategy", "single", "--n-estimators", "12", "--n-folds", "2", "--learning-rate", "0.3")
    succeed("plan", "--quiet", *words, DEMO, tmp_path / "free")
    whole = plan_of(tmp_path / "free")["instances"][0]["predicted_peak_bytes"]
    short = f"{(whole - (12 << 20)) / 2**30:.4f}"
    run = tmp_path / "run"
    said = succeed("plan", *words, "--max-memory-per-instance-gb", short, DEMO, run)
    plan = plan_of(run)
    assert "shap" not in plan["options"]["analyses"]
    assert "overfitting" in plan["options"]["analyses"]
    assert next(x["option"] for x in plan["lowered"]) == "analyses: shap"
    assert "analyses: shap" in said.out + said.err
    assert plan["instances"][0]["predicted_peak_bytes"] <= plan["budget"]["bytes"] < whole
    # The same command again is the same plan; and who insists is refused with what would do.
    assert "already" in succeed("plan", *words, "--max-memory-per-instance-gb", short, DEMO, run).out
    insisting = start(
        "plan", *words, "--max-memory-per-instance-gb", short, "--analyses", "shap", DEMO, tmp_path / "no"
    )
    assert insisting.code == 4
    assert "--max-memory-per-instance-gb" in insisting.err
    succeed("train-instance", "--quiet", run, "0")
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    assert usage["measured_peak_bytes"] <= usage["budget_bytes"]
    assert "shap" in json.loads((run / "instances/00/analysis.json").read_text())["off"]


@pytest.mark.parametrize("strategy", ["single", "external"])
def test_analyses_stay_within_the_predicted_memory(tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", strategy, "--n-estimators", "40", "--n-folds", "3", "--learning-rate",
            "0.3", "--holdout-fraction", "0", DEMO, run)  # fmt: skip
    succeed("train-instance", "--quiet", run, "0")
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    sections = json.loads((run / "instances/00/analysis.json").read_text())["analyses"]
    assert {s["name"]: s["status"] for s in sections if s["status"] != "made"} == {}
    widest = max(usage["phases"], key=lambda p: p["peak_anonymous_bytes"])
    assert widest["name"] == "analysis"  # else the test says nothing of them
    assert usage["measured_peak_bytes"] <= 1.05 * usage["predicted_peak_bytes"]
    assert usage["predicted_peak_bytes"] - usage["measured_peak_bytes"] < 100e6
