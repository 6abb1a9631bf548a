"""Reliability curves and how they are drawn: over 0..1, and over log-odds, where a rare class can be read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from metabatch.analysis.figures import BASE, GREY, META, new_axes
from metabatch.analysis.frame import Picture
from metabatch.metrics.classification import ECE_BINS, reliability
from metabatch.models.calibration import logit

_STYLES = {"before": (BASE, "s", "--"), "after": (META, "o", "-")}


def curves(scores: Mapping[str, np.ndarray], positive: np.ndarray, weight: np.ndarray) -> pl.DataFrame:
    """Reliability of each series in 15 bins of equal width, of the probability and of its log-odds; filled bins only.

    Parameters
    ----------
    scores : mapping
        Name of the series -> probabilities, float64, shape (n,), within (0, 1).

    Returns
    -------
    polars.DataFrame
        when, scale (probability, log-odds), predicted (mean of the bin), observed (share), weight, rows, positives.
    """
    least, most = (extreme([extreme(p) for p in scores.values()]) for extreme in (np.min, np.max))
    low, high = float(logit(least)), float(logit(most))
    width = max(high - low, 1e-9)
    parts = []
    for when, p in scores.items():
        place = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
        linear = reliability(p, positive, weight)
        linear["positives"] = np.bincount(place, weights=positive, minlength=ECE_BINS).astype(np.int64)
        parts.append(_frame(linear, when, "probability"))
        place = np.clip(((logit(p) - low) / width * ECE_BINS).astype(np.int64), 0, ECE_BINS - 1)
        parts.append(_frame(_binned(place, p, positive, weight), when, "log-odds"))
    return pl.concat(parts)


def _binned(place: np.ndarray, p: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    def summed(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(place, weights=values, minlength=ECE_BINS)

    mass = summed(weight)
    safe = np.where(mass > 0, mass, 1)
    return {
        "predicted": summed(weight * p) / safe, "observed": summed(weight * positive) / safe, "weight": mass,
        "rows": summed(None), "positives": summed(positive.astype(np.float64)).astype(np.int64),
    }  # fmt: skip


def _frame(curve: Mapping[str, np.ndarray], when: str, scale: str) -> pl.DataFrame:
    frame = pl.DataFrame(dict(curve)).filter(pl.col("weight") > 0)
    return frame.select(pl.lit(when).alias("when"), pl.lit(scale).alias("scale"), pl.all())


def picture(name: str, stem: str, curve: pl.DataFrame, *, rows: int, positives: int, how: str) -> Picture:
    """One class, before and after and the perfect line: left over 0..1, right on log-odds axes."""
    figure, left = new_axes(9.6, 4.4)
    grid = figure.add_gridspec(1, 2)
    left.set_subplotspec(grid[0])
    right = figure.add_subplot(grid[1])
    right.spines[["top", "right"]].set_visible(False)
    _linear(left, curve.filter(pl.col("scale") == "probability"))
    _log_odds(right, curve.filter(pl.col("scale") == "log-odds"))
    for axes in (left, right):
        axes.set(xlabel="predicted probability (mean of the bin)", ylabel="observed share of rows (weighted)")
    left.set_title("bins of equal width in probability", fontsize=10)
    right.set_title("bins of equal width in log-odds", fontsize=10)
    left.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{name}: {positives:,} of {rows:,} rows, calibration {how}", fontsize=11)
    caption = (
        f"{name}: reliability before and after calibration, {rows:,} out-of-fold rows, {positives:,} of the class, "
        "15 bins a panel; on the line, predicted and observed agree. Open marks: bins of which none, or all, are of "
        "the class; they lie beyond the axis."
    )
    return Picture(f"calibration-{stem}", caption, figure, curve)


def _linear(axes: Axes, curve: pl.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfect")
    for when, (colour, marker, line) in _STYLES.items():
        part = curve.filter(pl.col("when") == when)
        axes.plot(part["predicted"], part["observed"], color=colour, marker=marker, linestyle=line, label=when)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))


def _log_odds(axes: Axes, curve: pl.DataFrame) -> None:
    inside = pl.col("observed").is_between(0, 1, closed="none")
    x, y = (logit(curve.filter(inside)[c].to_numpy()) for c in ("predicted", "observed"))
    extremes = [*logit(curve["predicted"].to_numpy()), *y]
    low, high = min(extremes) - 1.5, max(extremes) + 1.5
    axes.plot([low, high], [low, high], color=GREY, linewidth=1)
    for when, (colour, marker, line) in _STYLES.items():
        mine = (curve.filter(inside)["when"] == when).to_numpy()
        axes.plot(x[mine], y[mine], color=colour, marker=marker, linestyle=line)
        beyond = curve.filter(~inside, pl.col("when") == when)
        edge = np.where(beyond["observed"].to_numpy() > 0, high - 0.5, low + 0.5)
        axes.plot(logit(beyond["predicted"].to_numpy()), edge, color=colour, marker=marker, ls="", fillstyle="none")
    ticks = _ticks(low, high)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks(list(ticks), list(ticks.values()))


def _ticks(low: float, high: float) -> dict[float, str]:
    """Log-odds -> its probability in words: 0.5, powers of ten, and one less such a power; six or so of them."""
    powers = {float(logit(np.array(10.0**-n))): f"{10.0**-n:g}" for n in range(7, 0, -1)}
    nines = {-odds: f"1-{text}" if odds < -10 else f"{1 - float(text):g}" for odds, text in reversed(powers.items())}
    places = {odds: text for odds, text in (powers | {0.0: "0.5"} | nines).items() if low <= odds <= high}
    step = len(places) // 7 + 1
    middle = list(places).index(0.0) if 0.0 in places else 0
    return {odds: text for i, (odds, text) in enumerate(places.items()) if (i - middle) % step == 0}
