"""Figures of an evaluation, each beside a CSV of its numbers. Okabe-Ito colours: readable for the colour-blind."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.classification import reliability
from metabatch.rundir.layout import class_stems

META_COLOUR, BASE_COLOUR, GREY = "#0072B2", "#D55E00", "#999999"
_POINTS = 400

mpl.use("Agg")


def draw_figures(rows: ScoredRows, classes: tuple[str, ...], folder: Path) -> list[Path]:
    """Write precision-recall and reliability figures (PNG + CSV) for every class that occurs.

    Returns
    -------
    list of Path
        The PNG files, in order of class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for code, (name, stem) in enumerate(zip(classes, class_stems(classes), strict=True)):
        positive = rows.label == code
        if not 0 < (rows.weight * positive).sum() < rows.weight.sum():
            continue
        series = {"meta-model": (rows.meta[:, code], META_COLOUR)}
        if not np.isnan(rows.base[:, code]).any():
            series = {"base model": (rows.base[:, code], BASE_COLOUR)} | series
        made.append(_precision_recall(name, stem, series, positive, rows, folder))
        made.append(_reliability(name, stem, series, positive, rows, folder))
    return made


def precision_recall_curve(
    score: np.ndarray, positive: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted precision and recall at every distinct threshold, thinned to at most a few hundred points."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    total = np.cumsum(weight[order])[ends]
    hits = np.cumsum((weight * positive)[order])[ends]
    recall, precision = hits / hits[-1], hits / np.maximum(total, 1e-300)
    keep = np.unique(np.searchsorted(recall, np.linspace(0, 1, _POINTS)).clip(max=len(recall) - 1))
    return recall[keep], precision[keep], score[order][ends][keep]


def _precision_recall(
    name: str,
    stem: str,
    series: dict[str, tuple[np.ndarray, str]],
    positive: np.ndarray,
    rows: ScoredRows,
    folder: Path,
) -> Path:
    figure, axes = _axes()
    parts = []
    for label, (score, colour) in series.items():
        recall, precision, threshold = precision_recall_curve(score, positive, rows.weight)
        axes.plot(recall, precision, color=colour, label=label, linestyle="--" if label == "base model" else "-")
        parts.append(
            pl.DataFrame({"recall": recall, "precision": precision, "threshold": threshold}).with_columns(
                model=pl.lit(label)
            )
        )
    share = float((rows.weight * positive).sum() / rows.weight.sum())
    axes.axhline(share, color=GREY, linewidth=1, label=f"chance (prevalence {share:.2g})")
    axes.set(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02),
        title=f"{name}: {int(positive.sum()):,} of {len(positive):,} rows, {len(rows.gene_names):,} genes",
    )  # fmt: skip
    axes.legend(loc="lower left", frameon=False)
    return _save(figure, folder / f"precision-recall-{stem}.png", pl.concat(parts))


def _reliability(
    name: str,
    stem: str,
    series: dict[str, tuple[np.ndarray, str]],
    positive: np.ndarray,
    rows: ScoredRows,
    folder: Path,
) -> Path:
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfect")
    parts = []
    for label, (score, colour) in series.items():
        if score.min() < 0 or score.max() > 1:
            continue  # a score that is no probability has no reliability
        curve = reliability(score, positive, rows.weight)
        filled = curve["rows"] > 0
        axes.plot(
            curve["predicted"][filled], curve["observed"][filled], color=colour, label=label,
            marker="s" if label == "base model" else "o", linestyle="--" if label == "base model" else "-",
        )  # fmt: skip
        parts.append(pl.DataFrame(curve).filter(pl.Series(filled)).with_columns(model=pl.lit(label)))
    axes.set(
        xlabel="predicted probability (mean of bin)", ylabel="observed share", xlim=(0, 1), ylim=(0, 1.02),
        title=f"{name}: reliability, {len(positive):,} rows in 15 bins",
    )  # fmt: skip
    axes.legend(loc="upper left", frameon=False)
    return _save(figure, folder / f"reliability-{stem}.png", pl.concat(parts))


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path, numbers: pl.DataFrame) -> Path:
    figure.savefig(path, dpi=130)
    numbers.write_csv(path.with_suffix(".csv"))
    return path
