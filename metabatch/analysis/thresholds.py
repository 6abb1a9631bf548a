"""Where to cut the meta-model's score: precision, recall, F1 and calls over all thresholds, per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from metabatch.analysis.figures import BASE, GREY, LINES, META, new_axes
from metabatch.analysis.frame import Cell, Found, ImpossibleError, Picture, Shown
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import Ranking, group_multiplicities, interval
from metabatch.metrics.thresholds import OperatingPoints, at_threshold, decisions, f1_of, resampled_best
from metabatch.rundir.layout import class_stems

PRECISIONS, RECALLS = (0.5, 0.8, 0.9, 0.95), (0.9,)
_POINTS, _RESAMPLES = 400, 200
# Where the class is rarer than this, thresholds of interest lie close to 0 or 1: a logit axis shows them.
_RARE, _EDGE = 0.02, 1e-6
# F1 lost on genes that did not choose the threshold before a person should know.
_LOSS = 0.05


@dataclass(frozen=True)
class _Class:
    """One class: its points, of the base too where every row has its score, and its facts."""

    name: str
    code: int
    points: OperatingPoints
    base: OperatingPoints | None
    facts: dict[str, Any]


def scan_thresholds(rows: ScoredRows, classes: tuple[str, ...], *, seed: int = 0) -> Found:
    """Scan the thresholds of every class, and recommend some.

    The best F1 is found on the rows it is judged on, so it flatters; `f1_honest` chooses on one half of the groups and
    judges on the other, both ways (decisions of both halves counted together).

    Raises
    ------
    ImpossibleError
        No class has both positive and negative rows.
    """
    scanned = [found for code, name in enumerate(classes) if (found := _scan(rows, code, name, seed)) is not None]
    absent = [name for name in classes if name not in {c.name for c in scanned}]
    if not scanned:
        raise ImpossibleError("no class has both positive and negative rows with weight")
    stems = class_stems(classes)
    says = [_sentence(c) for c in scanned]
    if absent:
        says.append(f"Not scanned, for want of positive or negative rows: {', '.join(absent)}.")
    kind = "out-of-fold rows of the training genes" if rows.fold is not None else "rows of genes not trained on"
    return Found(
        on=f"{rows.described()}: {kind}; the meta-model's calibrated, normalised score",
        says=says,
        flags=[text for c in scanned for text in _flags(c)],
        facts={
            "classes": {c.name: c.facts for c in scanned}, "absent": absent, "resamples": _RESAMPLES,
            "rows": len(rows), "genes": len(rows.gene_names), "groups": int(rows.group.max()) + 1,
        },
        shown=[_shown_best(scanned), _shown_targets(scanned)],
        tables={"thresholds": pl.concat([_table(rows, c) for c in scanned])},
        pictures=[_picture(rows, c, stems[c.code]) for c in scanned],
    )  # fmt: skip


def _scan(rows: ScoredRows, code: int, name: str, seed: int) -> _Class | None:
    score, positive = rows.meta[:, code], rows.label == code
    points = OperatingPoints.of(score, positive, rows.weight)
    if points is None:
        return None
    known = not np.isnan(rows.base[:, code]).any()
    base = OperatingPoints.of(rows.base[:, code], positive, rows.weight) if known else None
    best = points.best()
    threshold = float(points.threshold[best])
    facts = {
        **_point(rows, points, best),
        **_intervals(rows, score, positive, threshold, seed),
        "f1_honest": _honest(rows, score, positive, seed),
        "f1_at_half": at_threshold(score, positive, rows.weight, 0.5)["f1"],
        "at_precision": {f"{p:g}": _reached(rows, points, points.at_precision(p)) for p in PRECISIONS},
        "at_recall": {f"{r:g}": _reached(rows, points, points.at_recall(r)) for r in RECALLS},
        "base": None if base is None else _point(rows, base, base.best()),
        "prevalence": float((rows.weight * positive).sum() / rows.weight.sum()),
        "positives": int(positive.sum()),
    }
    return _Class(name, code, points, base, facts)


def _reached(rows: ScoredRows, points: OperatingPoints, at: int | None) -> dict[str, Any] | None:
    return None if at is None else _point(rows, points, at)


def _point(rows: ScoredRows, points: OperatingPoints, at: int) -> dict[str, Any]:
    """One threshold in numbers; calls are in positions that the rows stand for."""
    called = float(points.called[at])
    return {
        "threshold": float(points.threshold[at]), "precision": float(points.precision[at]),
        "recall": float(points.recall[at]), "f1": float(points.f1[at]),
        "calls_per_gene": called / len(rows.gene_names), "calls_per_kb": 1000 * called / float(rows.weight.sum()),
    }  # fmt: skip


def _intervals(
    rows: ScoredRows, score: np.ndarray, positive: np.ndarray, threshold: float, seed: int
) -> dict[str, tuple[float, float] | None]:
    """By resampling groups: F1 at this threshold, and where the best threshold would lie."""
    groups = int(rows.group.max()) + 1
    draws = group_multiplicities(groups, _RESAMPLES, seed)
    called = score >= threshold
    kinds = (called & positive, called & ~positive, ~called & positive)
    sums = np.stack([np.bincount(rows.group, weights=rows.weight * k, minlength=groups) for k in kinds], axis=1)
    ranking = Ranking.of(score, positive)
    again = [resampled_best(ranking, score, rows.weight * times[rows.group]) for times in draws]
    return {
        "f1_ci95": interval(np.array([f1_of(*kept) for kept in draws @ sums])),
        "threshold_ci95": interval(np.array(again)),
    }


def _honest(rows: ScoredRows, score: np.ndarray, positive: np.ndarray, seed: int) -> float | None:
    """F1 when one half of the groups chooses the threshold for the other; None where a half cannot choose."""
    groups = int(rows.group.max()) + 1
    # Groups with positives are dealt out first, so that each half has as many as the other (or one more).
    has = np.bincount(rows.group, weights=positive, minlength=groups) > 0
    order = np.random.default_rng(seed).permutation(groups)
    half = np.empty(groups, dtype=bool)
    half[order[np.argsort(~has[order], kind="stable")]] = np.arange(groups) % 2 == 0
    first = half[rows.group]
    kinds = np.zeros(3)
    for choose, judge in ((first, ~first), (~first, first)):
        points = OperatingPoints.of(score[choose], positive[choose], rows.weight[choose]) if choose.any() else None
        if points is None:
            return None
        threshold = float(points.threshold[points.best()])
        kinds += decisions(score[judge], positive[judge], rows.weight[judge], threshold)
    return f1_of(*kinds)


def _sentence(c: _Class) -> str:
    f = c.facts
    honest = f["f1_honest"]
    text = f"{c.name}: the best F1, {f['f1']:.3f}, is at {_short(f['threshold'])} (precision {f['precision']:.3f}, "
    text += f"recall {f['recall']:.3f}; at 0.5 F1 is {f['f1_at_half']:.3f}). "
    if honest is None:
        text += "Too few groups to choose it on one half and judge it on the other: that F1 flatters."
    else:
        text += f"Chosen on half of the genes and judged on the other half it is {honest:.3f}"
        text += "." if c.base is None else f"; the base score's best is {f['base']['f1']:.3f} (not cross-fitted)."
    return text


def _flags(c: _Class) -> list[str]:
    f, found = c.facts, []
    if f["f1_honest"] is not None and f["f1"] - f["f1_honest"] > _LOSS:
        found.append(
            f"{c.name}: the threshold does not carry over well from genes to genes: F1 {f['f1']:.3f} where it was "
            f"chosen, {f['f1_honest']:.3f} elsewhere."
        )
    if f["base"] is not None and f["base"]["f1"] >= f["f1"]:
        found.append(f"{c.name}: the base score's best F1, {f['base']['f1']:.3f}, is no worse ({f['f1']:.3f}).")
    return found


def _shown_best(scanned: list[_Class]) -> Shown:
    rows: list[tuple[Cell, ...]] = []
    for c in scanned:
        f = c.facts
        low, high = f["f1_ci95"] or (None, None)
        base = f["base"] or {}
        rows.append((
            c.name, f["threshold"], f["precision"], f["recall"], f["f1"], low, high, f["f1_honest"], f["f1_at_half"],
            base.get("f1"), f["calls_per_gene"],
        ))  # fmt: skip
    return Shown(
        title="Threshold of the best F1",
        columns=("class", "threshold", "precision", "recall", "F1", "95 % low", "95 % high", "F1 cross-fitted",
                 "F1 at 0.5", "base's best F1", "calls per gene"),
        kinds=("text", "small", *("number",) * 8, "small"),
        rows=tuple(rows),
        note="Interval: groups resampled, at this threshold. F1 is the best on these very rows and so flatters; "
        "cross-fitted is chosen on half of the groups and judged on the other half, both ways. The bundle holds these "
        "thresholds as of all instances' rows.",
    )  # fmt: skip


def _shown_targets(scanned: list[_Class]) -> Shown:
    rows: list[tuple[Cell, ...]] = []
    for c in scanned:
        for what, key in (("precision", "at_precision"), ("recall", "at_recall")):
            for least, point in c.facts[key].items():
                cells = ("threshold", "precision", "recall", "f1", "calls_per_gene", "calls_per_kb")
                numbers = [None if point is None else point[cell] for cell in cells]
                rows.append((c.name, f"{what} {least} or more", *numbers))
    return Shown(
        title="Thresholds for a wanted precision or recall",
        columns=("class", "wanted", "threshold", "precision", "recall", "F1", "calls per gene", "calls per kb"),
        kinds=("text", "text", "small", "number", "number", "number", "small", "small"),
        rows=tuple(rows),
        note="Empty: no threshold reaches it. Calls are positions that the rows called stand for (weights).",
    )


def _table(rows: ScoredRows, c: _Class) -> pl.DataFrame:
    p, at = c.points, c.points.thinned(_POINTS)
    total = float(rows.weight.sum())
    return pl.DataFrame({
        "class": [c.name] * len(at), "threshold": p.threshold[at], "precision": p.precision[at],
        "recall": p.recall[at], "f1": p.f1[at], "false_discovery": 1 - p.precision[at],
        "called_rows": p.called_rows[at], "calls_per_gene": p.called[at] / len(rows.gene_names),
        "calls_per_kb": 1000 * p.called[at] / total,
    })  # fmt: skip


def _picture(rows: ScoredRows, c: _Class, stem: str) -> Picture:
    figure, axes = new_axes()
    table = _table(rows, c)
    logit = c.facts["prevalence"] < _RARE
    x = np.clip(table["threshold"].to_numpy(), _EDGE, 1 - _EDGE) if logit else table["threshold"].to_numpy()
    chosen = float(np.clip(c.facts["threshold"], _EDGE, 1 - _EDGE)) if logit else c.facts["threshold"]
    for (name, colour), line in zip(
        (("precision", "#E69F00"), ("recall", "#009E73"), ("f1", META)), LINES, strict=False
    ):
        label = "F1" if name == "f1" else name
        axes.plot(x, table[name], color=colour, linestyle=line, label=label, linewidth=2 if name == "f1" else 1.2)
    axes.axvline(chosen, color=GREY, linewidth=0.8)
    axes.plot([chosen], [c.facts["f1"]], "o", color=META, label=f"best F1, at {_short(c.facts['threshold'])}")
    if c.facts["base"] is not None:
        axes.axhline(c.facts["base"]["f1"], color=BASE, linestyle=":", label="base score's best F1")
    if logit:
        axes.set_xscale("logit")
        ticks = [t for t in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999) if x.min() <= t <= x.max()]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
    counts = f"{c.facts['positives']:,} of {len(rows):,} rows, {len(rows.gene_names):,} genes"
    axes.set(
        xlabel="threshold of the meta score" + (" (logit scale)" if logit else ""), ylabel="precision, recall, F1",
        ylim=(0, 1.02), title=f"{c.name}: {counts}",
    )  # fmt: skip
    if not logit:
        axes.set_xlim(0, 1)
    axes.legend(fontsize="small", edgecolor="none", loc="center left")
    caption = f"{c.name}: precision, recall and F1 of calls at or above a threshold, weighted; n = {len(rows):,} rows"
    if logit:
        caption += f"; thresholds below {_EDGE:g} or above 1 - {_EDGE:g} are drawn at these"
    return Picture(f"thresholds-{stem}", caption + ".", figure, table.with_columns(drawn_at=x))


def _short(threshold: float) -> str:
    return f"{threshold:.3g}"
