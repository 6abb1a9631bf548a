"""Runs side by side: what is compared, on which rows, with what outcome; and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from metabatch.evaluation.against_report import cells, tables
from metabatch.evaluation.recommendation import TOLERANCE_AP, Candidate, recommend
from metabatch.rundir.publish import sha256_file
from tests.conftest import DEMO, NO_ANALYSES, QUICK, plan_of, small_table, start, succeed, write_table

SMALL = ("--n-estimators", "6", "--learning-rate", "0.5", "--n-folds", "2", "--early-stopping-patience", "0",
         *NO_ANALYSES)  # fmt: skip


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, sha256_file(p)) for p in folder.rglob("*") if p.is_file()
    }


def reseal(folder: Path, name: str) -> None:
    """Put a file as it is now into the marker: what another program, or an older version, might have written."""
    marker = json.loads((folder / "done.json").read_text())
    marker["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / "done.json").write_text(json.dumps(marker))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`trained` again with other strategies: the same genes are held out."""
    folder = tmp_path_factory.mktemp("others")
    for strategy in ("external", "multi-instance"):
        words = ("--holdout-fraction", "0.3", "--strategy", strategy, *QUICK)
        succeed("run-all", "--quiet", *words, DEMO, folder / strategy)
    return {p.name: p for p in folder.iterdir()}


@pytest.fixture(scope="module")
def compared(
    trained: Path, others: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """A copy of `trained` after its comparison with both, what that said with --json, and then without."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("compared") / "single"))
    words = ("evaluate", "--quiet", run, "--against", f"{others['external']},{others['multi-instance']}")
    before = {p: snapshot(p) for p in others.values()}
    found = succeed(*words, "--json").json
    said = succeed(*words).out
    assert {p: snapshot(p) for p in others.values()} == before, "the other runs are only read"
    return run, found, said


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a generated table without positions, evaluated on different genes (the name says which)."""
    folder = tmp_path_factory.mktemp("small")
    frame = small_table().drop("position").with_columns(
        chrom="chr" + (pl.col("gene_id").str.slice(1).cast(pl.Int32) % 4).cast(pl.String),
        site=pl.when(pl.col("splice_type") == "neither").then(pl.lit("no")).otherwise(pl.lit("yes")),
    )  # fmt: skip
    data = write_table(folder / "data", frame)
    runs = {
        "0-1": ("--holdout-chrom", "chr0,chr1"),
        "1-2": ("--holdout-chrom", "chr1,chr2"),
        "2": ("--holdout-chrom", "chr2"),
        "all": ("--holdout-fraction", "0"),
    }
    for name, words in runs.items():
        succeed("run-all", "--quiet", *words, "--exclude-features", "site", *SMALL, data, folder / name)
    succeed("plan", "--quiet", "--label-column", "site", "--classes", "no,yes", "--score-columns", "yes=signal",
            "--exclude-features", "splice_type", *SMALL, data, folder / "site")  # fmt: skip
    return {name: folder / name for name in (*runs, "site")}


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {r["name"]: r for r in found["runs"]}


def test_external_memory_is_the_single_model_to_the_last_digit(compared: tuple[Path, dict[str, Any], str]) -> None:
    runs = by_name(compared[1])
    assert runs["single"]["difference"] is None
    difference = runs["external"]["difference"]
    for found in (*difference["classes"].values(), difference["macro"]):
        assert found == {"ap": 0.0, "ci95": [0.0, 0.0], "verdict": "not distinguishable"}
    assert runs["external"]["classes"] == runs["single"]["classes"]
    assert runs["external"]["macro"] == runs["single"]["macro"]


def test_the_numbers_are_those_of_each_runs_own_evaluation(
    compared: tuple[Path, dict[str, Any], str], others: dict[str, Path]
) -> None:
    run, found, _ = compared
    own = {"single": run, **others}
    assert set(by_name(found)) == set(own)
    for name, told in by_name(found).items():
        metrics = json.loads((own[name] / "evaluation/metrics.json").read_text())
        assert (found["genes"], found["rows"]) == (metrics["genes"], metrics["rows"])
        assert (told["genes_scored"], told["how"]) == (metrics["genes"], metrics["how"])
        for which, there in ((told, "meta"), (found["base"], "base")):
            for c in ("neither", "donor", "acceptor"):
                for key in ("ap", "ece", "brier", "log_loss"):
                    assert which["classes"][c][key] == pytest.approx(metrics[there][c][key], rel=1e-12)
                assert which["classes"][c]["ci95"]["ap"] == pytest.approx(metrics[there][c]["ci95"]["ap"], rel=1e-12)
            summary = metrics["summary"][there]
            assert which["macro"]["ap"] == pytest.approx(summary["macro"]["ap"], rel=1e-12)
            assert which["macro"]["log_loss"] == pytest.approx(summary["log_loss"], rel=1e-12)


def test_the_ensemble_differs_by_what_it_is_better_or_worse(compared: tuple[Path, dict[str, Any], str]) -> None:
    runs = by_name(compared[1])
    difference = runs["multi-instance"]["difference"]
    for c, told in (*difference["classes"].items(), ("macro", difference["macro"])):
        first, other = (
            (r["macro"] if c == "macro" else r["classes"][c])["ap"] for r in (runs["single"], runs["multi-instance"])
        )
        assert told["ap"] == other - first != 0
        low, high = told["ci95"]
        assert low < high
        assert told["verdict"] == ("better" if low > 0 else "worse" if high < 0 else "not distinguishable")
    assert difference["classes"]["donor"]["ci95"] != runs["multi-instance"]["classes"]["donor"]["ci95"]["ap"]


def test_costs_are_those_on_record(compared: tuple[Path, dict[str, Any], str], others: dict[str, Path]) -> None:
    run, found, _ = compared
    for name, folder in {"single": run, **others}.items():
        cost = by_name(found)[name]["cost"]
        plan = plan_of(folder)
        usages = [json.loads(f.read_text()) for f in sorted(folder.glob("instances/*/resource_usage.json"))]
        assert cost["members"] == len(plan["instances"]) == len(usages) == (3 if name == "multi-instance" else 1)
        assert cost["training_seconds"] == pytest.approx(sum(p["seconds"] for u in usages for p in u["phases"]))
        assert cost["training_cpu_seconds"] == pytest.approx(sum(p["cpu_seconds"] for u in usages for p in u["phases"]))
        assert cost["peak_bytes"] == max(u["measured_peak_bytes"] for u in usages)
        assert cost["mem_request_mb"] == max(p["mem_request_mb"] for p in plan["instances"])
        files = [f for f in (folder / "ensemble/members").rglob("*") if f.is_file()]
        assert cost["model_bytes"] == sum(f.stat().st_size for f in files)
        boosters = [f for f in files if f.suffix == ".ubj"]
        assert len(boosters) <= cost["trees"] <= 25 * len(boosters)
        score = json.loads((folder / "evaluation/resource_usage.json").read_text())["phases"][0]
        assert score["name"] == "score"
        assert cost["score_rows_per_second"] == pytest.approx(found["rows"] / score["seconds"], abs=0.1)
    assert by_name(found)["external"]["cost"]["trees"] == by_name(found)["single"]["cost"]["trees"]


class _Cells(HTMLParser):
    """The text of every table cell, table by table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        if tag == "td":
            self._inside = True
            self.tables[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.tables[-1][-1] += data


def test_report_table_and_screen_show_the_numbers_of_the_json(compared: tuple[Path, dict[str, Any], str]) -> None:
    run, found, said = compared
    assert json.loads((run / "against/comparison.json").read_text()) == found
    source = (run / "against/report.html").read_text()
    parser = _Cells()
    parser.feed(source)
    shown = tables(found)
    assert parser.tables == [[cell for row in cells(t) for cell in row] for t in shown]
    multi = by_name(found)["multi-instance"]
    line = ["donor", "multi-instance", f"{multi['classes']['donor']['ap']:.3f}"]
    assert line in [row[:3] for row in cells(shown[0])]
    for t in shown:
        for row in cells(t):
            assert [" ".join(x.split()) for x in said.splitlines()].count(" ".join(" ".join(row).split())) == 1
    answer = found["recommendation"]["text"]
    assert answer in said
    assert answer in source
    assert source.count('<img src="data:image/png;base64,') == 1
    lines = pl.read_parquet(run / "against/comparison.parquet")
    assert lines.height == (3 + 1) * 4  # three classes and their mean; the base model and three runs
    row = lines.filter((pl.col("class") == "donor") & (pl.col("run") == "multi-instance")).row(0, named=True)
    told = multi["difference"]["classes"]["donor"]
    assert (row["ap"], row["difference"], row["verdict"]) == (
        multi["classes"]["donor"]["ap"],
        told["ap"],
        told["verdict"],
    )
    assert [row["difference_low"], row["difference_high"]] == told["ci95"]
    figure = pl.read_csv(run / "against/figures/ap-by-run.csv")
    assert figure["ap"].to_list() == pytest.approx(lines["ap"].to_list())


def test_it_recommends_the_least_memory_among_the_runs_within_the_tolerance(
    compared: tuple[Path, dict[str, Any], str],
) -> None:
    found = compared[1]
    runs = by_name(found)
    best = max(r["macro"]["ap"] for r in runs.values())
    near = [n for n, r in runs.items() if r["macro"]["ap"] >= best - TOLERANCE_AP]
    chosen = found["recommendation"]["run"]
    assert chosen == min(near, key=lambda n: runs[n]["cost"]["peak_anonymous_bytes"])
    assert set(found["recommendation"]["others"]) == set(runs) - {chosen}


def candidate(name: str, ap: float | None, mib: int) -> Candidate:
    spread = np.linspace(-0.001, 0.001, 100)
    return Candidate(name, ap, (ap or np.nan) + spread, mib << 20, name != "ensemble", name == "ensemble")


@pytest.mark.parametrize(
    ("ap", "taken"), [(0.800, "ensemble"), (0.7951, "ensemble"), (0.7949, "exact"), (0.75, "exact"), (0.83, "ensemble")]
)
def test_an_ensemble_that_costs_more_than_the_tolerance_is_not_recommended(ap: float, taken: str) -> None:
    found = recommend([candidate("exact", 0.8, 900), candidate("ensemble", ap, 100)])
    assert found["run"] == taken
    assert found["text"].startswith(f"Take {taken}: ")
    if taken == "exact":
        behind = found["others"]["ensemble"]["behind_exact"]
        assert (behind["run"], behind["ap"], behind["verdict"]) == ("exact", pytest.approx(ap - 0.8), "worse")
        assert f"ensemble is {0.8 - ap:.2g} worse" in found["text"]
        assert "more than 0.005 behind the exact model exact" in found["text"]


def test_a_dearer_run_that_is_hardly_better_is_not_recommended_and_without_all_classes_none_is() -> None:
    assert recommend([candidate("a", 0.804, 900), candidate("b", 0.8, 100), candidate("c", 0.7, 10)])["run"] == "b"
    found = recommend([candidate("a", None, 900), candidate("b", None, 100)])
    assert found["run"] is None
    assert "does not occur" in found["text"]


def test_a_run_is_not_different_from_itself_and_is_named_twice(small: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(small["2"], tmp_path / "run"))
    found = succeed("evaluate", "--quiet", "--json", run, "--against", run).json
    assert [r["name"] for r in found["runs"]] == ["run", "run (2)"]
    assert [r["path"] for r in found["runs"]] == [str(run)] * 2
    told = found["runs"][1]["difference"]
    assert {(d["ap"], *d["ci95"]) for d in (*told["classes"].values(), told["macro"])} == {(0.0, 0.0, 0.0)}


def test_it_is_done_once_until_an_evaluation_changes(small: dict[str, Path], tmp_path: Path) -> None:
    run, other = (Path(shutil.copytree(small[n], tmp_path / n)) for n in ("1-2", "2"))
    words = ("evaluate", "--quiet", run, "--against", other)
    first = succeed(*words).out
    assert not first.startswith("already")
    before = snapshot(run)
    assert succeed(*words).out == f"already compared: nothing was changed\n\n{first}"
    assert snapshot(run) == before
    marker = json.loads((run / "against/done.json").read_text())
    assert marker["inputs"] == {f"{p.name}/evaluation": sha256_file(p / "evaluation/done.json") for p in (run, other)}
    evaluation = json.loads((other / "evaluation/done.json").read_text())
    (other / "evaluation/done.json").write_text(json.dumps(evaluation | {"finished": "2000-01-01T00:00:00+00:00"}))
    assert not succeed(*words).out.startswith("already")
    assert succeed(*words).out.startswith("already")
    (run / "against/report.html").write_text("altered")
    assert not succeed(*words).out.startswith("already")
    assert "altered" not in (run / "against/report.html").read_text()


def test_only_genes_that_all_held_out_are_compared(small: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(small["0-1"], tmp_path / "0-1"))
    said = succeed("evaluate", "--quiet", run, "--against", small["1-2"]).out
    found = json.loads((run / "against/comparison.json").read_text())
    held = [set(pl.read_parquet(r / "evaluation/predictions.parquet")["gene_id"]) for r in (run, small["1-2"])]
    assert len(held[0] & held[1]) == found["genes"] == 6 < len(held[0]) == 12
    assert "compared on 6 genes, 360 rows scored honestly by all" in said
    assert "(0-1 scored 12 genes, 720 rows; 1-2 scored 12 genes, 720 rows)" in said
    own = pl.read_parquet(run / "evaluation/per_gene.parquet").filter(pl.col("gene_id").is_in(list(held[0] & held[1])))
    loss = by_name(found)["0-1"]["macro"]["log_loss"]  # every gene has as many rows
    assert loss == pytest.approx(own["meta_log_loss"].mean(), rel=1e-6)


def test_without_a_holdout_the_rows_are_joined_all_the_same(small: dict[str, Path], tmp_path: Path) -> None:
    """Out-of-fold rows of one run, scored rows of the other; here no position tells the rows of a gene apart."""
    run = Path(shutil.copytree(small["2"], tmp_path / "2"))
    found = succeed("evaluate", "--quiet", "--json", run, "--against", small["all"]).json
    assert found["joined_by"] == ["gene_id", "order of the rows"]
    assert found["genes"] == 6
    genes = pl.read_parquet(run / "evaluation/predictions.parquet")["gene_id"].unique()
    own = pl.read_parquet(small["all"] / "evaluation/per_gene.parquet").filter(pl.col("gene_id").is_in(genes.implode()))
    assert by_name(found)["all"]["macro"]["log_loss"] == pytest.approx(own["meta_log_loss"].mean(), rel=1e-6)
    assert by_name(found)["all"]["cost"]["score_rows_per_second"] is None
    assert any("scored in different ways" in n for n in found["notes"])
    assert "out-of-fold" in by_name(found)["all"]["how"]


def test_rows_in_another_order_are_found_by_their_key(others: dict[str, Path], trained: Path, tmp_path: Path) -> None:
    run, other = (Path(shutil.copytree(r, tmp_path / n)) for r, n in ((trained, "run"), (others["external"], "other")))
    file = other / "evaluation/predictions.parquet"
    pl.read_parquet(file).sample(fraction=1, shuffle=True, seed=1).write_parquet(file)
    reseal(other / "evaluation", file.name)
    found = succeed("evaluate", "--quiet", "--json", run, "--against", other).json
    assert found["joined_by"] == ["gene_id", "position"]
    assert by_name(found)["other"]["classes"] == by_name(found)["run"]["classes"]


def test_a_run_not_yet_evaluated_is_evaluated_first(small: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(small["1-2"], tmp_path / "run"))
    shutil.rmtree(run / "evaluation")
    said = succeed("evaluate", "--quiet", run, "--against", small["2"]).out
    assert said.startswith(f"evaluated first: {run}/evaluation/report.html")
    assert "already evaluated" in succeed("evaluate", "--quiet", run).out


def refused(run: Path, other: Path | str, *texts: str) -> None:
    """Exit 3 with these words and no traceback, and nothing written."""
    before = snapshot(run)
    outcome = start("evaluate", "--quiet", run, "--against", other)
    assert outcome.code == 3, outcome.err
    for text in texts:
        assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert snapshot(run) == before


def test_what_cannot_be_compared_is_refused_with_the_reason(
    small: dict[str, Path], trained: Path, tmp_path: Path
) -> None:
    run = small["0-1"]
    refused(run, trained, "of another data set", "only in", "part-0.parquet")
    refused(run, small["site"], "--label-column splice_type and site", "--classes acceptor,donor,neither and no,yes")
    refused(run, small["2"], "no gene was scored by all 2 runs", "--holdout-chrom")
    refused(run, tmp_path, "has no plan.json")
    refused(run, f"{small['1-2']},{tmp_path}", "has no plan.json")
    assert start("evaluate", "--quiet", run, "--against", " , ").code == 2


def test_a_run_that_is_not_evaluated_or_was_altered_is_refused(
    small: dict[str, Path], copy_of: Callable[[Path], Path]
) -> None:
    run, other = small["0-1"], copy_of(small["1-2"])
    file = other / "evaluation/predictions.parquet"
    rows = pl.read_parquet(file)

    def rewrite(frame: pl.DataFrame) -> None:
        frame.write_parquet(file)
        reseal(other / "evaluation", file.name)

    file.write_bytes(file.read_bytes() + b"x")
    refused(
        run, other, f"{other} is not evaluated: predictions.parquet differs from done.json", f"bin/evaluate {other}"
    )
    swapped = pl.col("label").replace({"donor": "acceptor"})
    rewrite(rows.with_columns(pl.when(pl.int_range(pl.len()) < 600).then(swapped).otherwise(pl.col("label"))))
    refused(run, other, "the label of", "rows differs, the first in gene G", "--force")
    rewrite(rows.with_columns(weight=pl.lit(2.0, pl.Float32)))
    refused(run, other, "the weight of 360 rows differs")
    rewrite(rows.slice(0, rows.height - 1))
    refused(run, other, "scored other rows of gene G", "(59 and 60 rows)")
    rewrite(rows)
    instance = next((other / "instances").iterdir())
    marker = json.loads((instance / "done.json").read_text())
    (instance / "done.json").write_text(json.dumps(marker | {"finished": "2000-01-01T00:00:00+00:00"}))
    refused(run, other, "made from other instances", f"bin/consolidate {other}")
    shutil.rmtree(other / "evaluation")
    refused(run, other, f"{other} is not evaluated: not done (no done.json)", f"next: bin/evaluate {other}")
