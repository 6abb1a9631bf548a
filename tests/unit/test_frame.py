"""An analysis hands over what it found; one that fails is an error in the report and costs nothing else."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import msgspec
import polars as pl
import pytest

from metabatch.analysis.figures import new_axes
from metabatch.analysis.frame import Found, ImpossibleError, Picture, Section, Sections, Shown, save_sections, study
from metabatch.analysis.page import cell_text, render_page
from metabatch.errors import InterruptedRunError


def found() -> Found:
    figure, axes = new_axes()
    axes.plot([0, 1], [1, 2])
    return Found(
        on="two rows",
        says=["It is so."],
        facts={"x": float("nan"), "y": 0.1},
        shown=[Shown(title="T", columns=("a", "b"), kinds=("text", "number"), rows=(("<b>", None), ("c", 0.12345)))],
        tables={"t": pl.DataFrame({"a": [1]})},
        pictures=[Picture("p", "a line, n = 2", figure, pl.DataFrame({"x": [0, 1]}))],
    )


def page(*sections: Section) -> str:
    template = "instance.html.j2"
    return render_page(
        template, "metabatch.analysis", index=0, answer=["?"], helps=True, scope="", sections=sections, off=("shap",),
        url=lambda name: f"data:{name}", facts=[], version="0", fingerprint="f",
    )  # fmt: skip


def test_what_is_found_is_written_and_read_back_as_it_is_shown(tmp_path: Path) -> None:
    section = study("name", "Title", found, tmp_path)
    assert (section.status, section.facts, section.tables) == ("made", {"x": None, "y": 0.1}, ("t.parquet",))
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"t.parquet", "p.png", "p.csv"}
    save_sections(tmp_path / "analysis.json", Sections(analyses=(section,)))
    again = msgspec.json.decode((tmp_path / "analysis.json").read_bytes(), type=Sections)
    assert again.analyses == (section,)
    html = page(section)
    assert "<td>0.123</td>" in html
    assert "&lt;b&gt;" in html  # a gene's name is no markup
    assert "a line, n = 2" in html
    assert "left out for want of memory (see the plan): shap" in html


def test_an_analysis_that_fails_is_an_error_in_the_report_and_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Found:
        raise ZeroDivisionError("by zero rows")

    with caplog.at_level(logging.ERROR):
        section = study("name", "Title", fail, tmp_path)
    assert (section.status, section.why) == ("failed", "ZeroDivisionError: by zero rows")
    assert "Traceback" in caplog.text
    assert not list(tmp_path.iterdir())
    html = page(section)
    assert "This analysis failed and shows nothing: ZeroDivisionError: by zero rows" in html
    assert "<img" not in html


def test_what_rows_do_not_allow_is_said_without_an_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def cannot() -> Found:
        raise ImpossibleError("there is one gene only")

    section = study("name", "Title", cannot, tmp_path)
    assert (section.status, section.why) == ("impossible", "there is one gene only")
    assert not caplog.records
    assert "Not made: there is one gene only." in page(section)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), MemoryError("no"), InterruptedRunError("TERM")],
    ids=["disk", "memory", "interrupt"],
)
def test_a_full_disk_short_memory_and_an_interrupt_are_no_fault_of_the_analysis(
    tmp_path: Path, error: BaseException
) -> None:
    def fail() -> Found:
        raise error

    with pytest.raises(type(error)):
        study("name", "Title", fail, tmp_path)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "number", "–"), (1234.0, "count", "1,234"), (0.12345, "number", "0.123"), (1.2e-7, "small", "1.2e-07"),
        (0.1, "signed", "+0.100"), (-3e-6, "signed", "-3e-06"), (0.5, "percent", "50.0%"), ("a", "number", "a"),
    ],
)  # fmt: skip
def test_cells_are_written_by_their_kind(value: float | str | None, kind: str, text: str) -> None:
    assert cell_text(value, kind) == text  # type: ignore[arg-type]
