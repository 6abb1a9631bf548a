"""Precision-recall, ROC and reliability curves of base and meta-model side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from sklearn.metrics import roc_curve

from metabatch.analysis.figures import BASE, GREY, META, new_axes
from metabatch.analysis.frame import Found, ImpossibleError, Picture
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.classification import reliability
from metabatch.rundir.layout import class_stems

_POINTS = 400
# label -> colour, line, marker: not by colour alone.
_LOOK = {"base model": (BASE, "--", "s"), "meta-model": (META, "-", "o")}
_Series = dict[str, np.ndarray]


def curves(rows: ScoredRows, classes: Sequence[str], *, on: str, reliable: bool = False) -> Found:
    """The curves of every class that occurs; with `reliable` its reliability too.

    Raises
    ------
    ImpossibleError
        No class has both positives and others with weight.
    """
    pictures = []
    for code, (name, stem) in enumerate(zip(classes, class_stems(classes), strict=True)):
        positive = rows.label == code
        if not 0 < (rows.weight * positive).sum() < rows.weight.sum():
            continue
        series = {"meta-model": rows.meta[:, code]}
        if not np.isnan(rows.base[:, code]).any():
            series = {"base model": rows.base[:, code]} | series
        pictures.append(_precision_recall(name, stem, series, positive, rows))
        pictures.append(_roc(name, stem, series, positive, rows))
        if reliable:
            pictures.append(_reliability(name, stem, series, positive, rows))
    if not pictures:
        raise ImpossibleError("no class has both positives and other rows")
    return Found(on=on, pictures=pictures)


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


def _size(positive: np.ndarray, rows: ScoredRows) -> str:
    return f"{int(positive.sum()):,} of {len(positive):,} rows, {len(rows.gene_names):,} genes"


def _precision_recall(name: str, stem: str, series: _Series, positive: np.ndarray, rows: ScoredRows) -> Picture:
    figure, axes = new_axes()
    parts = []
    for label, score in series.items():
        recall, precision, threshold = precision_recall_curve(score, positive, rows.weight)
        colour, line, _ = _LOOK[label]
        axes.plot(recall, precision, color=colour, label=label, linestyle=line)
        parts.append(_frame(label, recall=recall, precision=precision, threshold=threshold))
    share = float((rows.weight * positive).sum() / rows.weight.sum())
    axes.axhline(share, color=GREY, linewidth=1, label=f"chance (prevalence {share:.2g})")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02),
             title=f"{name}: {_size(positive, rows)}")  # fmt: skip
    axes.legend(loc="lower left", frameon=False)
    return Picture(f"precision-recall-{stem}", f"{name}: precision and recall, {_size(positive, rows)}", figure,
                   pl.concat(parts))  # fmt: skip


def _roc(name: str, stem: str, series: _Series, positive: np.ndarray, rows: ScoredRows) -> Picture:
    figure, axes = new_axes()
    parts = []
    for label, score in series.items():
        false, true, threshold = roc_curve(positive, score, sample_weight=rows.weight)
        # Where the curve rises: even in the logarithm of the false positives, which the axis shows.
        steps = np.concatenate([np.zeros(1), np.geomspace(1e-6, 1, _POINTS)])
        keep = np.unique(np.searchsorted(false, steps, side="right").clip(1, len(false)) - 1)
        false, true, threshold = false[keep], true[keep], threshold[keep]
        colour, line, _ = _LOOK[label]
        axes.step(np.maximum(false, 1e-6), true, where="post", color=colour, label=label, linestyle=line)
        parts.append(_frame(label, false_positive_rate=false, true_positive_rate=true, threshold=threshold))
    axes.set(xscale="log", xlabel="false positive rate (log)", ylabel="true positive rate (recall)", xlim=(1e-6, 1),
             ylim=(0, 1.02), title=f"{name}: {_size(positive, rows)}")  # fmt: skip
    axes.legend(loc="lower right", frameon=False)
    return Picture(f"roc-{stem}", f"{name}: ROC curve, {_size(positive, rows)}", figure, pl.concat(parts))


def _reliability(name: str, stem: str, series: _Series, positive: np.ndarray, rows: ScoredRows) -> Picture:
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfect")
    parts = []
    for label, score in series.items():
        if score.min() < 0 or score.max() > 1:
            continue  # a score that is no probability has no reliability
        curve = reliability(score, positive, rows.weight)
        filled = curve["rows"] > 0
        colour, line, marker = _LOOK[label]
        axes.plot(
            curve["predicted"][filled], curve["observed"][filled], color=colour, label=label, marker=marker,
            linestyle=line,
        )  # fmt: skip
        parts.append(_frame(label, **{key: values[filled] for key, values in curve.items()}))
    axes.set(xlabel="predicted probability (mean of bin)", ylabel="observed share", xlim=(0, 1), ylim=(0, 1.02),
             title=f"{name}: reliability, {len(positive):,} rows in 15 bins")  # fmt: skip
    axes.legend(loc="upper left", frameon=False)
    return Picture(f"reliability-{stem}", f"{name}: reliability in 15 bins, {_size(positive, rows)}", figure,
                   pl.concat(parts))  # fmt: skip


def _frame(label: str, **columns: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(columns).with_columns(model=pl.lit(label))
