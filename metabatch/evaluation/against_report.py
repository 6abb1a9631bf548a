"""RUN/against for people: the tables on screen and in report.html, the figure, and comparison.parquet."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from metabatch import __version__
from metabatch.analysis.answer import band
from metabatch.analysis.figures import COLOURS, GREY, MARKERS, new_axes
from metabatch.analysis.frame import Found, ImpossibleError, Picture, Shown, study
from metabatch.analysis.page import cell_text, picture_url, render_page
from metabatch.evaluation.evaluated import BASE

MACRO = "mean of the classes"
# Most inches of the figure, whatever the number of runs and classes.
_WIDEST = 16.0


def compared_on(comparison: dict[str, Any]) -> str:
    """Which rows, and how many each run scored."""
    each = "; ".join(
        f"{r['name']} scored {r['genes_scored']:,} genes, {r['rows_scored']:,} rows" for r in comparison["runs"]
    )
    weighted = f", weighted by {comparison['weighted_by']}" if comparison["weighted_by"] else ""
    rows = f"{comparison['genes']:,} genes, {comparison['rows']:,} rows scored honestly by all{weighted}"
    return f"compared on {rows} ({each})"


def hows(comparison: dict[str, Any]) -> list[str]:
    """How each run scored, in words."""
    return [f"{r['name']} ({r['path']}): {r['how']}" for r in comparison["runs"]]


def tables(comparison: dict[str, Any]) -> list[Shown]:
    """AP with the differences, calibration, cost."""
    first = comparison["runs"][0]["name"]
    ap, fit = [], []
    for name, who, m, d in _lines(comparison):
        label = MACRO if name is None else name
        gap = d or {"ap": None, "ci95": None, "verdict": ""}
        ap.append(
            (label, who, m["ap"], band(m["ci95"]["ap"]), gap["ap"], band(gap["ci95"]) if d else "", gap["verdict"])
        )
        fit.append((label, who, m["ece"], m["brier"], m["log_loss"]))
    b = comparison["bootstrap"]
    return [
        Shown(
            title="Average precision",
            columns=("class", "run", "AP", "95 % interval", f"less {first}", "its interval", "verdict"),
            kinds=("text", "text", "number", "text", "signed", "text", "text"), rows=tuple(ap),
            note=f"{b['resamples']} bootstrap resamples of {b['groups']:,} {b['unit']} groups, {b['interval']}; "
                 "the same ones for all runs, so the differences are paired.",
        ),
        Shown(
            title="Calibration", columns=("class", "run", "ECE", "Brier", "log loss"),
            kinds=("text", "text", "small", "small", "small"), rows=tuple(fit),
            note=f"Log loss beside {MACRO}: of all classes together. A dash: undefined, or no probabilities.",
        ),
        Shown(
            title="Cost",
            columns=("run", "strategy", "members", "trees", "genes", "training, s", "CPU, s", "peak, MiB",
                     "anonymous", "--mem, MB", "models, MiB", "rows/s"),
            kinds=("text", "text", "count", "count", "count", "count", "count", "count", "count", "count", "number",
                   "count"),
            rows=tuple(_cost(r) for r in comparison["runs"]),
            note="Seconds: of all instances together, without their analyses. Peak: the highest of one instance, for "
                 "external memory without mapped pages; anonymous memory is counted alike for all. Genes: trained on. "
                 "Models: on disk. Rows/s: of evaluate, by all members.",
        ),
    ]  # fmt: skip


def cells(shown: Shown) -> list[list[str]]:
    """A table as it is written, for the screen."""
    return [[cell_text(v, kind) for v, kind in zip(row, shown.kinds, strict=True)] for row in shown.rows]


def _cost(run: dict[str, Any]) -> tuple[str | float | int | None, ...]:
    c = run["cost"]
    return (
        run["name"], run["strategy"], c["members"], c["trees"], c["trained_genes"], c["training_seconds"],
        c["training_cpu_seconds"], c["peak_bytes"] / 2**20, c["peak_anonymous_bytes"] / 2**20, c["mem_request_mb"],
        c["model_bytes"] / 2**20, c["score_rows_per_second"],
    )  # fmt: skip


def _lines(comparison: dict[str, Any]) -> Iterator[tuple[str | None, str, dict[str, Any], dict[str, Any] | None]]:
    """Class (None: their mean), base model or run, metrics, difference: class by class, the base model first."""
    base = comparison["base"]
    for name in (*comparison["classes"], None):
        m = base["macro"] if name is None else base["classes"].get(name)
        if m is not None and base["classes"]:
            yield name, BASE, m, None
        for run in comparison["runs"]:
            d = run["difference"]
            if name is None:
                yield name, run["name"], run["macro"], d and d["macro"]
            else:
                yield name, run["name"], run["classes"][name], d and d["classes"][name]


def as_frame(comparison: dict[str, Any]) -> pl.DataFrame:
    """comparison.parquet: a line per class (null: their mean) and run (null: the base model)."""
    spread: dict[str, list[Any]] = {}
    for name, who, m, d in _lines(comparison):
        low, high = m["ci95"]["ap"] or (None, None)
        below, above = (d and d["ci95"]) or (None, None)
        line = {
            "class": name, "run": None if who == BASE else who, "ap": m["ap"], "ap_low": low, "ap_high": high,
            "difference": d and d["ap"], "difference_low": below, "difference_high": above,
            "verdict": d and d["verdict"], "ece": m["ece"], "brier": m["brier"], "log_loss": m["log_loss"],
        }  # fmt: skip
        for key, value in line.items():
            spread.setdefault(key, []).append(value)
    text = ("class", "run", "verdict")
    return pl.DataFrame(spread, schema={k: pl.String if k in text else pl.Float64 for k in spread})


def render(comparison: dict[str, Any], folder: Path) -> str:
    """report.html; the figure is written into `folder`/figures."""
    section = study(
        "ap", "AP by class and run", lambda: Found(on=_on(comparison), pictures=[_picture(comparison)]), folder
    )
    return render_page(
        "against.html.j2",
        "metabatch.evaluation",
        comparison=comparison,
        on=compared_on(comparison),
        hows=hows(comparison),
        tables=tables(comparison),
        section=section,
        url=functools.partial(picture_url, folder),
        version=__version__,
    )


def _on(comparison: dict[str, Any]) -> str:
    return f"{comparison['rows']:,} rows of {comparison['genes']:,} genes"


def _picture(comparison: dict[str, Any]) -> Picture:
    """A group of points a class, a point a run, with the intervals."""
    frame = as_frame(comparison).filter(pl.col("ap").is_not_null())
    if frame.is_empty():
        raise ImpossibleError("no class has both positives and other rows")
    frame = frame.with_columns(pl.col("class").fill_null(MACRO), pl.col("run").fill_null(BASE))
    groups, who = frame["class"].unique(maintain_order=True).to_list(), frame["run"].unique(maintain_order=True)
    step = 0.7 / len(who)
    figure, axes = new_axes(min(_WIDEST, 2 + len(groups) * (0.8 + 0.25 * len(who))), 4.4)
    for number, name in enumerate(who):
        part = frame.filter(pl.col("run") == name)
        at = [groups.index(c) + (number - (len(who) - 1) / 2) * step for c in part["class"]]
        ap = part["ap"].to_numpy()
        # Without an interval (too few resamples have the class) the point stands alone; it may lie outside its own.
        low, high = (part[c].fill_null(part["ap"]).to_numpy() for c in ("ap_low", "ap_high"))
        bars = np.maximum([ap - low, high - ap], 0)
        colour = GREY if name == BASE else COLOURS[(number - 1) % len(COLOURS)]
        axes.errorbar(at, ap, yerr=bars, fmt=MARKERS[number % len(MARKERS)], color=colour, capsize=3, label=name)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel="average precision", ylim=(0, 1.02), xlim=(-0.5, len(groups) - 0.5), title=_on(comparison))
    figure.legend(loc="outside lower center", ncols=min(4, len(who)), frameon=False)
    caption = "Average precision by class and run, with 95 % intervals (whole genes or loci resampled)"
    return Picture("ap-by-run", caption, figure, frame.select("class", "run", "ap", "ap_low", "ap_high"))
