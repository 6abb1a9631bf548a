"""The reports of the demo, as a browser shows them, and number by number against their JSON."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from metabatch.analysis.page import cell_text
from metabatch.options import ANALYSES
from tests.conftest import DEMO, plan_of, small_table, succeed, write_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Told by the page itself, in its title: does it run over the window's edge, does an image not show, is text too small?
ASK = """<script>addEventListener("load", () => { document.title = "@" + JSON.stringify({
  width: document.documentElement.scrollWidth, window: innerWidth, images: document.images.length,
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
  squeezed: [...document.images].filter(i =>
    Math.abs(i.clientWidth / i.clientHeight - i.naturalWidth / i.naturalHeight) > .03).length,
  wide: [...document.images].filter(i => i.getBoundingClientRect().right > innerWidth + 1).length,
}) + "@"; });</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    succeed("run-all", "--quiet", "--holdout-fraction", "0.35", "--n-estimators", "40", "--learning-rate", "0.3",
            "--n-folds", "3", "--early-stopping-patience", "5", "--diagnostic-rows", "2000", DEMO, folder)  # fmt: skip
    return folder


def reports(run: Path) -> dict[str, Path]:
    return {"run": run / "evaluation", "instance": run / "instances/00"}


def sections_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "analysis.json").read_text())["analyses"]


def test_every_analysis_of_the_demo_is_made_and_none_fails(run: Path) -> None:
    made = {s["name"]: (s["status"], s["why"]) for s in sections_of(run / "instances/00")}
    assert list(made) == list(ANALYSES)
    assert {name: found for name, found in made.items() if found[0] != "made"} == {}
    assert {s["name"]: s["status"] for s in sections_of(run / "evaluation")} == dict.fromkeys(
        ("curves", "genes", "neighbourhoods"), "made"
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("which", ["run", "instance"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole_without_errors_or_network(run: Path, tmp_path: Path, which: str, width: int) -> None:
    source = (reports(run)[which] / "report.html").read_text()
    page = tmp_path / "report.html"
    page.write_text(source.replace("</body>", ASK + "</body>"))
    log = tmp_path / "net.json"
    # A window narrower than the browser's own least is asked for as a frame of that width.
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe id="f" src="report.html" width="{width}" height="900" style="border:0"></iframe><script>'
                     'setInterval(() => { document.title = document.getElementById("f").contentDocument.title }, 50);'
                     "</script>")  # fmt: skip
    done = subprocess.run(
        [CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-background-networking", "--disable-component-update", "--no-first-run",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={max(width + 40, 600)},1000", "--enable-logging=stderr", f"--log-net-log={log}",
         "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = re.search(r"<title>@(.*?)@</title>", done.stdout)
    assert said, done.stderr[-2000:]
    seen = json.loads(html.unescape(said[1]))
    assert seen["window"] == width
    assert seen["width"] <= width, "it runs over the edge of the window"
    assert seen["images"] == source.count("<img ") >= 20
    assert (seen["broken"], seen["squeezed"], seen["wide"]) == (0, 0, 0)
    assert not re.findall(r"CONSOLE.*report\.html.*", done.stderr)
    assert not re.findall(r'"url":"(?:https?|wss?)://(?!localhost)[^"]*report[^"]*"', log.read_text())
    assert not re.findall(r"""(?:src|href|action)=["'](?!data:|#)""", source)
    assert "@import" not in source
    assert "url(" not in source


class _Cells(HTMLParser):
    """The text of every table cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self._inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


@pytest.mark.parametrize("which", ["run", "instance"])
def test_the_numbers_are_those_of_the_json_in_its_order(run: Path, which: str) -> None:
    folder = reports(run)[which]
    parser = _Cells()
    parser.feed((folder / "report.html").read_text())
    expected = [
        cell_text(value, kind)
        for s in sections_of(folder)
        for table in s["shown"]
        for row in table["rows"]
        for value, kind in zip(row, table["kinds"], strict=True)
    ]
    assert len(expected) > (40 if which == "run" else 200)
    text = "\x00".join(parser.cells)
    assert "\x00".join(expected) in text if which == "instance" else all(cell in parser.cells for cell in expected)


@pytest.mark.parametrize("which", ["run", "instance"])
def test_every_picture_stands_beside_its_numbers(run: Path, which: str) -> None:
    folder = reports(run)[which]
    pictures = [p for s in sections_of(folder) for p in s["pictures"]]
    names = [p["name"] for p in pictures]
    assert len(names) == len(set(names)) >= (8 if which == "run" else 25)
    assert {f.stem for f in (folder / "figures").iterdir()} == set(names)
    for picture in pictures:
        assert (folder / f"figures/{picture['name']}.png").stat().st_size > 4_000
        numbers = pl.read_csv(folder / f"figures/{picture['name']}.csv", infer_schema_length=None)
        assert numbers.height > 0, picture["name"]
        assert len(picture["caption"]) > 10


def test_the_report_opens_with_the_answer(run: Path) -> None:
    for folder in reports(run).values():
        source = (folder / "report.html").read_text()
        opening = source[source.index("<body>") : source.index("<table>")]
        assert "does the meta-model help?" in opening.lower()
        assert re.search(r"donor: AP 0\.\d{3} \(base\) to 0\.\d{3} \(meta\), difference [+-]", opening)
        assert re.search(r"\d+ genes|rows of \d+ genes", opening)


def test_analyses_can_be_chosen_and_the_report_says_what_was_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--n-estimators", "10", "--n-folds", "2", "--learning-rate", "0.3", "--sample-genes", "20")
    succeed("run-all", "--quiet", *words, "--analyses", "thresholds,genes", DEMO, run)
    found = json.loads((run / "instances/00/analysis.json").read_text())
    assert [s["name"] for s in found["analyses"]] == ["thresholds", "genes"]
    assert set(found["off"]) == set(ANALYSES) - {"thresholds", "genes"}
    assert "shap" in (run / "instances/00/report.html").read_text().rpartition("left out")[2]
    assert not (run / "instances/00/shap.parquet").exists()


def test_members_are_explained_together_weighted_by_their_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = write_table(tmp_path / "data", small_table(genes=30, rows=40))
    succeed("run-all", "--quiet", "--strategy", "multi-instance", "--n-estimators", "5", "--n-folds", "2",
            "--holdout-fraction", "0.2", "--analyses", "importance,shap", data, run)  # fmt: skip
    rows = {p["index"]: p["rows"] for p in plan_of(run)["instances"]}
    assert len(rows) == 3
    tables = {i: pl.read_parquet(run / f"instances/{i:02d}/shap.parquet") for i in rows}
    merged = pl.read_parquet(run / "evaluation/shap.parquet")
    for name, feature, value in merged.select("class", "feature", "mean_abs_shap").iter_rows():
        members = {
            i: t.filter((pl.col("class") == name) & (pl.col("feature") == feature))["mean_abs_shap"].item()
            for i, t in tables.items()
        }
        assert value == pytest.approx(sum(members[i] * n for i, n in rows.items()) / sum(rows.values()), rel=1e-6)
    source = (run / "evaluation/report.html").read_text()
    assert "Feature importance, all members" in source
    assert source.count("<details") == 3
    assert (run / "evaluation/figures/importance_donor.png").exists()
