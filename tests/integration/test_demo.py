"""The README's first command on the shipped real data."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import DEMO, Outcome, succeed


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    run = tmp_path_factory.mktemp("demo") / "run"
    return succeed("run-all", "--demo", run), run


def test_shipped_data_is_what_its_source_says() -> None:
    listed = dict(re.findall(r"^([0-9a-f]{64})  (\S+)", (DEMO / "SOURCE.md").read_text(), re.MULTILINE)[::-1])
    assert len(listed) == 5
    for digest, name in listed.items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest


def test_meta_beats_base_on_genes_it_never_saw(outcome: tuple[Outcome, Path]) -> None:
    _, run = outcome
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["weighted_by"] == "sampling_weight"
    assert metrics["genes"] >= 10
    for name in ("donor", "acceptor"):
        assert metrics["meta"][name]["ap"] > metrics["base"][name]["ap"]
        low, high = metrics["meta"][name]["ci95"]["ap"]
        assert low < metrics["meta"][name]["ap"] < high
        # Out of fold on the other genes: many loci more, same direction.
        fold = metrics["out_of_fold"]
        assert fold["meta"][name]["ap"] > fold["base"][name]["ap"]
    low, _ = metrics["difference"]["donor"]["ci95"]
    assert low > 0


def test_it_ends_with_base_and_meta_and_the_report(outcome: tuple[Outcome, Path]) -> None:
    said, run = outcome
    report = Path(said.out.strip().splitlines()[-1].removeprefix("report: "))
    assert report == run / "evaluation" / "report.html"
    assert re.search(r"^donor +0\.\d+ +0\.\d+ +\+0\.\d+", said.out, re.MULTILINE)
    assert re.search(r"^acceptor +0\.\d+ +0\.\d+", said.out, re.MULTILINE)


def test_the_report_is_one_file_with_the_numbers_of_the_json(outcome: tuple[Outcome, Path]) -> None:
    _, run = outcome
    html = (run / "evaluation" / "report.html").read_text()
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", html)
    assert html.count('<img src="data:image/png;base64,') > 40
    for which in ("base", "meta"):
        for name in ("donor", "acceptor"):
            assert f"<td>{metrics[which][name]['ap']:.3f}</td>" in html
    assert html.index("Does the meta-model help?") < html.index("<table>")


def test_holdout_loci_are_not_in_the_training_ledger(outcome: tuple[Outcome, Path]) -> None:
    _, run = outcome
    genes = pl.read_parquet(run / "genes.parquet")
    ledger = json.loads((run / "instances" / "00" / "done.json").read_text())["ledger"]
    held = genes.filter(pl.col("split") == "holdout")
    assert sorted(ledger) == genes.filter(pl.col("split") == "train")["gene_id"].sort().to_list()
    trained_loci = set(genes.filter(pl.col("split") == "train")["split_group"])
    assert not trained_loci & set(held["split_group"])
    predictions = pl.read_parquet(run / "evaluation" / "predictions.parquet")
    assert set(predictions["gene_id"]) == set(held["gene_id"])


def test_only_features_reach_the_matrix(outcome: tuple[Outcome, Path]) -> None:
    _, run = outcome
    features = json.loads((run / "features.json").read_text())
    names = {f["name"] for f in features["features"]}
    assert len(names) == 159
    reasons = {e["name"]: e["reason"] for e in features["excluded"]}
    assert not names & {"gene_id", "chrom", "position", "strand", "locus_id", "splice_type", "sampling_weight"}
    assert "follows the label" in reasons["sampling_weight"]


def test_resource_usage_has_kernel_figures_per_phase(outcome: tuple[Outcome, Path]) -> None:
    _, run = outcome
    usage = json.loads((run / "instances" / "00" / "resource_usage.json").read_text())
    assert usage["peak_rss_bytes"] > 100 << 20
    assert {p["name"] for p in usage["phases"]} == {
        "rows", "matrix", "cross-validation", "final-models", "ablation", "calibration", "write", "metrics", "analysis",
    }  # fmt: skip
    rows = next(p for p in usage["phases"] if p["name"] == "rows")
    assert rows["rows_read"] >= rows["rows_asked"] > 0
    assert usage["peak_rss_bytes"] >= max(p["peak_rss_bytes"] for p in usage["phases"])
