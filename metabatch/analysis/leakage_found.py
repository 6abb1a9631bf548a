"""What the leakage screen of the plan found, for the reports."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from metabatch.analysis.figures import COLOURS, GREY, MARKERS, new_axes
from metabatch.analysis.frame import Found, ImpossibleError, Picture, Shown
from metabatch.analysis.leakage import BEYOND_AUC

_TOP = 10


def leakage_found(table: pl.DataFrame, classes: Sequence[str], *, left_out: bool) -> Found:
    """The screen's table in words, the features that tell most, and a picture of all.

    Parameters
    ----------
    table : polars.DataFrame
        leakage.parquet (see `metabatch.analysis.leakage.leakage_table`).
    left_out : bool
        Whether flagged features were left out of the matrix.
    """
    if table.is_empty():
        raise ImpossibleError("no feature was looked at")
    flagged = table.filter("flagged")
    features = table["feature"].n_unique()
    fate = "left out" if left_out else "trained on"
    says = [
        f"{features:,} features were looked at for {len(classes)} classes; "
        + (f"{flagged['feature'].n_unique():,} give a label away." if flagged.height else "none gives a label away.")
    ]
    beyond = _folded("base_stratified_auc")
    ranked = table.with_columns(
        alone=_folded("auc"), beyond=beyond, gap=_folded("missing_auc"), zero=_folded("zero_auc")
    )
    # A null comes last: without base scores there is no "beyond".
    top = ranked.sort("flagged", "beyond", "alone", descending=True, nulls_last=True).head(_TOP)
    kept = ("feature", "class", "alone", "ap", "beyond", "gap", "zero", "reason")
    return Found(
        on="whole training genes drawn over all shards when the run was planned; each feature alone, without a model",
        says=says,
        flags=[f"{f} ({c}), {fate}: {r}" for f, c, r in flagged.select("feature", "class", "reason").iter_rows()],
        facts={"features": features, "flagged": flagged.height, "left_out": left_out},
        shown=[
            Shown(
                title="Features that tell most",
                columns=("feature", "class", "AUC", "AP", "AUC beyond base", "AUC of missing", "AUC of zero", "remark"),
                kinds=("text", "text", "number", "number", "number", "number", "number", "text"),
                rows=tuple(top.select(kept).iter_rows()),
                note="AUC in either direction. Beyond base: among rows of like base score, where the base scores work. "
                "All of them stand in leakage.parquet of the run.",
            )
        ],
        pictures=[_picture(ranked, classes)],
    )


def _folded(name: str) -> pl.Expr:
    """An AUC in either direction."""
    return pl.max_horizontal(pl.col(name), 1 - pl.col(name))


def _picture(ranked: pl.DataFrame, classes: Sequence[str]) -> Picture:
    figure, axes = new_axes()
    against = "beyond" if ranked["beyond"].count() else "ap"
    numbers = ranked.select("feature", "class", "alone", against, "flagged").drop_nulls()
    for code, name in enumerate(classes):
        part = numbers.filter(pl.col("class") == name)
        axes.scatter(
            part["alone"], part[against], s=14, alpha=0.7, color=COLOURS[code % len(COLOURS)], linewidths=0,
            marker=MARKERS[code % len(MARKERS)], label=name,
        )  # fmt: skip
    bad = numbers.filter("flagged")
    axes.scatter(bad["alone"], bad[against], s=90, facecolors="none", edgecolors="black", label="flagged")
    if against == "beyond":
        axes.axhline(BEYOND_AUC, color=GREY, linewidth=1, linestyle="--")
    axes.set(
        xlabel="AUC of the feature alone (either direction)",
        ylabel="AUC among rows of like base score" if against == "beyond" else "average precision",
        title=f"{numbers['feature'].n_unique():,} features, {len(classes)} classes",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize="small", loc="best")
    line = "; dashed: what only a leak reaches" if against == "beyond" else ""
    return Picture("leakage", f"What each feature tells of each class, alone and beyond the base scores{line}", figure,
                   numbers)  # fmt: skip
