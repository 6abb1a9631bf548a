"""`plan` on a table of 9,280 genes: the notes' arithmetic, the budget, refusals that say what would work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import NO_ANALYSES, plan_of, start, succeed

THEIRS = ("--memory-per-gene-mb", "8", "--holdout-fraction", "0", "--strategy", "multi-instance", *NO_ANALYSES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9,280 genes of 8 to about 900 rows (a tenth of the reference's sizes), generated."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(3.2, 0.9, 9280), 8, 900).astype(int)
    genes = np.repeat([f"ENSG{i:08d}" for i in range(9280)], sizes)
    n = len(genes)
    within = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    frame = pl.DataFrame(
        {
            "gene_id": genes,
            "splice_type": np.array(["neither", "donor", "acceptor"])[np.where(within > 2, 0, within)],
            "donor_score": rng.random(n, dtype=np.float32),
            "gc_content": rng.random(n, dtype=np.float32),
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("reference")
    for i in range(4):
        part = frame.filter(pl.Series(np.repeat(np.arange(9280) % 4 == i, sizes)))
        part.write_parquet(folder / f"shard-{i}.parquet", row_group_size=20_000)
    return folder


def test_their_defaults_give_seven_instances_of_1500(reference: Path, tmp_path: Path) -> None:
    out = succeed("plan", "--quiet", *THEIRS, "--max-memory-per-instance-gb", "15", reference, tmp_path / "run").out
    plan = plan_of(tmp_path / "run")
    assert [i["genes"] for i in plan["instances"]] == [1500] * 7
    assert sum(i["core_genes"] for i in plan["instances"]) == 9280
    assert sum(i["overlap_genes"] for i in plan["instances"]) == 1220
    assert plan["coverage"] == 1.0
    assert "sbatch --array=0-6 --mem=" in out
    assert "10,500 slots, 1,220 shared" in out
    assert "--strategy external fits the budget too" in out  # an exact model of all genes can be had
    rows = [i["rows"] for i in plan["instances"]]
    assert (max(rows) - min(rows)) / np.mean(rows) <= 0.05
    table = pl.read_parquet(tmp_path / "run" / "assignments.parquet")
    assert table["gene_id"].n_unique() == 9280
    assert table.filter(pl.col("role") == "core")["gene_id"].is_unique().all()


def test_eight_gb_give_ten_instances_of_1024(reference: Path, tmp_path: Path) -> None:
    succeed("plan", "--quiet", *THEIRS, "--max-memory-per-instance-gb", "8", reference, tmp_path / "run")
    assert [i["genes"] for i in plan_of(tmp_path / "run")["instances"]] == [1024] * 10


def test_two_gb_are_refused_with_what_would_work_and_accepted_with_more_instances(
    reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    refused = start("plan", "--quiet", *THEIRS, "--max-memory-per-instance-gb", "2", reference, run)
    assert refused.code == 4
    assert "need 41 instances, above --max-instances 10" in refused.err
    assert "--max-instances 41" in refused.err
    assert "--strategy external" in refused.err
    assert not run.exists()
    succeed(
        "plan", "--quiet", *THEIRS, "--max-memory-per-instance-gb", "2", "--max-instances", "41", reference, run
    )  # fmt: skip
    plan = plan_of(run)
    assert len(plan["instances"]) == 41
    assert max(i["genes"] for i in plan["instances"]) <= 256
    assert max(i["predicted_peak_bytes"] for i in plan["instances"]) <= 2 << 30


def test_no_adjusting_keeps_the_size_or_refuses(reference: Path, tmp_path: Path) -> None:
    refused = start(
        "plan", *THEIRS, "--no-auto-adjust-instance-size", "--max-memory-per-instance-gb", "8", reference,
        tmp_path / "run",
    )  # fmt: skip
    assert refused.code == 4
    assert "1500 genes" in refused.err


def test_auto_moves_to_external_memory_when_instances_run_out(reference: Path, tmp_path: Path) -> None:
    words = [w for w in THEIRS if w not in ("--strategy", "multi-instance")]
    succeed("plan", "--quiet", *words, "--max-memory-per-instance-gb", "2", reference, tmp_path / "run")
    plan = plan_of(tmp_path / "run")
    assert plan["strategy"] == "external"
    assert plan["coverage"] == 1.0
    reasons = {a["strategy"]: a["why_not"] for a in plan["alternatives"]}
    assert "41 instances" in reasons["multi-instance"]
    assert reasons["external"] is None


def test_holdout_is_a_stratified_tenth_and_never_trained_on(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    succeed("plan", "--quiet", "--strategy", "multi-instance", reference, run)
    genes = pl.read_parquet(run / "genes.parquet")
    held = genes.filter(pl.col("split") == "holdout")
    assert abs(held.height / 9280 - 0.1) < 0.005
    assert abs(held["rows"].sum() / genes["rows"].sum() - 0.1) < 0.005
    assert abs(held["n_donor"].sum() / genes["n_donor"].sum() - 0.1) < 0.005
    trained = set(pl.read_parquet(run / "assignments.parquet")["gene_id"])
    assert not trained & set(held["gene_id"])
    assert len(trained) + held.height == 9280


def test_the_plan_is_the_same_whatever_the_shards_are_called(reference: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    other.mkdir()
    for i, file in enumerate(sorted(reference.glob("*.parquet"), reverse=True)):
        (other / f"a{i}.parquet").write_bytes(file.read_bytes())
    succeed("plan", "--quiet", reference, tmp_path / "one")
    succeed("plan", "--quiet", other, tmp_path / "two")
    one, two = plan_of(tmp_path / "one"), plan_of(tmp_path / "two")
    assert one["fingerprint"] == two["fingerprint"]
    assert one["tables"] == two["tables"]


def test_sample_genes_are_complete_and_from_all_shards(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = succeed("plan", "--sample-genes", "40", reference, run).err
    genes = pl.read_parquet(run / "genes.parquet")
    assert genes.height == 40
    full = pl.scan_parquet(reference).group_by("gene_id").len().collect()
    joined = genes.join(full, on="gene_id")
    assert (joined["rows"] == joined["len"]).all()
    assert pl.read_parquet(run / "segments.parquet")["shard"].n_unique() == 4
    asked = int(genes["rows"].sum())
    assert f"for {asked:,} asked" in said


def test_profiles_change_what_was_not_given_and_say_so(reference: Path, tmp_path: Path) -> None:
    out = succeed("plan", "--quiet", "--profile", "low", reference, tmp_path / "low").out
    plan = plan_of(tmp_path / "low")
    assert plan["options"]["n_estimators"] == 400
    changed = {x["option"]: x["value"] for x in plan["lowered"]}
    assert changed == {"n_estimators": 400.0, "genes_per_instance": 500.0, "diagnostic_rows": 5000.0}
    assert "n_estimators 800 -> 400" in out
    succeed("plan", "--quiet", "--profile", "low", "--n-estimators", "900", reference, tmp_path / "own")
    assert plan_of(tmp_path / "own")["options"]["n_estimators"] == 900


def test_inspect_reports_the_table_as_json(reference: Path) -> None:
    found = json.loads(succeed("inspect-dataset", "--quiet", "--json", reference).out)
    assert found["genes"] == 9280
    assert found["class_rows"]["donor"] == 9280
    assert found["rows_per_gene"]["min"] == 8
    assert found["features"] == 2


def test_a_refusal_for_too_many_instances_names_the_size_that_would_do(reference: Path, tmp_path: Path) -> None:
    words = (*THEIRS, "--max-memory-per-instance-gb", "15")
    refused = start("plan", *words, "--genes-per-instance", "500", reference, tmp_path / "run")
    assert refused.code == 4
    size = re.search(r"--genes-per-instance (\d+)", refused.err)
    assert size is not None
    succeed("plan", "--quiet", *words, "--genes-per-instance", size[1], reference, tmp_path / "run")
    assert len(plan_of(tmp_path / "run")["instances"]) <= 10
