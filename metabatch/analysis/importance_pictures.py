"""Pictures of importance: the first features of each class, groups of features, and how far the methods agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metabatch.analysis.figures import BASE, COLOURS, GREY, META, new_axes
from metabatch.analysis.frame import Picture
from metabatch.analysis.importance_table import METHODS, agreement, methods_of
from metabatch.rundir.layout import class_stems

MOST = 20
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
# Column, its spread, label, colour, factor.
_Panel = tuple[str, str | None, str, str, float]


def importance_pictures(table: pl.DataFrame, groups: pl.DataFrame, note: str) -> list[Picture]:
    """Bars of the first features of each class, of groups, and ranks by methods; `note` ends every caption.

    `table`, `groups`: as `importance` hands them over, or merged from several members.
    """
    classes = table["class"].unique(maintain_order=True).to_list()
    pictures = [
        _first_features(name, stem, table.filter(pl.col("class") == name), note)
        for name, stem in zip(classes, class_stems(classes), strict=True)
    ]
    return [*pictures, _groups(classes, groups, note), _ranks(table, note)]


def _first_features(name: str, stem: str, part: pl.DataFrame, note: str) -> Picture:
    top = part.sort("rank").head(MOST)
    panels: list[_Panel] = [
        ("gain_share", None, "share of the gain (%)", META, 100.0),
        ("permutation", "permutation_sd", "permutation:\nincrease of the log loss (nats)", BASE, 1.0),
        ("shap", None, "mean |SHAP| (log odds)", COLOURS[2], 1.0),
    ]
    panels = [p for p in panels if top[p[0]].is_not_null().any()]
    labels = [f"{r}. {f}" for r, f in top.select("rank", "feature").iter_rows()]
    figure, every = _side_by_side(max(len(panels), 1), labels)
    for axes, (column, spread, label, colour, factor) in zip(every, panels, strict=False):
        values = top[column].to_numpy().astype(np.float64) * factor
        error = None if spread is None else np.nan_to_num(top[spread].to_numpy().astype(np.float64) * factor)
        places = np.arange(len(values))
        axes.barh(places, np.nan_to_num(values), xerr=error, color=colour, ecolor="black", capsize=2, height=0.7)
        for place in places[np.isnan(values)]:
            axes.annotate(
                "not measured", (0, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
            )
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)
    figure.suptitle(f"{name}: first {top.height} of {part.height:,} features")
    methods = ", ".join(METHODS[m] for m in methods_of(part))
    caption = f"{name}: the first features by the mean rank over {methods}. Whiskers: sd over repeats. On {note}"
    drawn = ["class", "feature", "group", "rank", *(c for p in panels for c in p[:2] if c is not None)]
    return Picture(f"importance_{stem}", caption, figure, top.select(drawn))


def _groups(classes: Sequence[str], groups: pl.DataFrame, note: str) -> Picture:
    names = (
        groups.group_by("group").agg(pl.col("gain_share").mean()).sort("gain_share", "group", descending=[True, False])
    )
    order = names["group"].to_list()
    panels: list[_Panel] = [
        ("gain_share", None, "share of the gain (%)", "", 100.0),
        ("shap_share", None, "share of the |SHAP| (%)", "", 100.0),
        ("permutation", "permutation_sd", "moved together: increase\nof the log loss (nats)", "", 1.0),
    ]
    panels = [p for p in panels if groups[p[0]].is_not_null().any()]
    figure, every = _side_by_side(max(len(panels), 1), order, each=0.24 * len(classes) + 0.1)
    height = 0.8 / len(classes)
    for axes, (column, spread, label, _, factor) in zip(every, panels, strict=False):
        for i, name in enumerate(classes):
            part = groups.filter(pl.col("class") == name)
            at = [order.index(g) + (i - (len(classes) - 1) / 2) * height for g in part["group"]]
            values = np.nan_to_num(part[column].to_numpy().astype(np.float64)) * factor
            error = None if spread is None else np.nan_to_num(part[spread].to_numpy().astype(np.float64)) * factor
            axes.barh(
                at, values, height, xerr=error, label=name, color=COLOURS[i % len(COLOURS)], edgecolor="white",
                hatch=_HATCHES[i % len(_HATCHES)], ecolor="black", capsize=2, linewidth=0.5,
            )  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)
    every[0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"Groups of features ({int(groups['features'].sum() / len(classes)):,} features)")
    caption = "What groups of features carry, and what the models lose when all of a group are moved between genes. "
    drawn = ["class", "group", "features", *(c for p in panels for c in p[:2] if c is not None)]
    return Picture("importance_groups", f"{caption}On {note}", figure, groups.select(drawn))


def _ranks(table: pl.DataFrame, note: str) -> Picture:
    methods, together = agreement(table)
    shown = [METHODS[m] for m in methods]
    mean = table.group_by("feature", maintain_order=True).agg(
        pl.col("overall_rank").first(), *(pl.col(f"rank_{m}").mean() for m in methods)
    )
    top = mean.sort("overall_rank").head(MOST)
    labels = [f"{r}. {f}" for r, f in top.select("overall_rank", "feature").iter_rows()]
    figure, (left, right) = _side_by_side(2, labels, each=0.3, share=False, width=4.6)
    cells = top.select(f"rank_{m}" for m in methods).to_numpy().astype(np.float64)
    _heat(left, np.log10(cells), [[f"{v:.0f}" for v in row] for row in cells], "viridis_r", None)
    left.set_yticks(range(len(labels)), labels, parse_math=False)
    left.set_title("rank by method, mean over classes", fontsize=10)
    texts = [["" if math.isnan(v) else f"{v:.2f}" for v in row] for row in together]
    _heat(right, together, texts, "cividis", (-1.0, 1.0))
    right.set_yticks(range(len(shown)), shown)
    right.set_title("Spearman's correlation of the methods", fontsize=10)
    for axes in (left, right):
        axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor")
    figure.suptitle(f"Agreement of {len(methods)} methods over {mean.height:,} features")
    caption = (
        "Left: ranks of the first features over all classes, 1 is most important. Right: agreement of the methods over "
        f"the features that a model splits on, mean over classes. On {note}"
    )
    ranks = top.rename({f"rank_{m}": METHODS[m] for m in methods}).unpivot(
        on=shown, index="feature", variable_name="column", value_name="value"
    )
    pairs = [("spearman", a, b, float(together[i, j])) for i, a in enumerate(shown) for j, b in enumerate(shown)]
    numbers = pl.concat(
        [
            ranks.select(pl.lit("rank").alias("panel"), pl.col("feature").alias("row"), "column", "value"),
            pl.DataFrame(pairs, schema=["panel", "row", "column", "value"], orient="row").fill_nan(None),
        ]
    )
    return Picture("importance_agreement", caption, figure, numbers)


def _side_by_side(
    panels: int, labels: Sequence[str], *, each: float = 0.27, share: bool = True, width: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """Axes in a row, a label per place from the top down; wide enough that no label is cut."""
    longest = max((len(label) for label in labels), default=0)
    figure, first = new_axes(panels * width + 0.085 * longest + 0.4, max(3.0, each * len(labels) + 1.6))
    grid = figure.add_gridspec(1, panels)
    first.set_subplotspec(grid[0])
    every = [first]
    for i in range(1, panels):
        axes = figure.add_subplot(grid[i], sharey=first if share else None)
        axes.spines[["top", "right"]].set_visible(False)
        if share:
            axes.tick_params(labelleft=False)
        every.append(axes)
    if share:
        first.set_yticks(range(len(labels)), labels, parse_math=False)
        first.set_ylim(len(labels) - 0.4, -0.6)
    return figure, every


def _heat(
    axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], colours: str, limits: tuple[float, float] | None
) -> None:
    image = axes.imshow(values, aspect="auto", cmap=colours, vmin=limits and limits[0], vmax=limits and limits[1])
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            shade = np.array(image.cmap(image.norm(values[i, j])))[:3] @ (0.299, 0.587, 0.114)
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color="black" if shade > 0.5 else "white")
