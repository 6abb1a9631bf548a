"""Beeswarm, bar and dependence plots of contributions, by the shap package, which is imported only for them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from metabatch.analysis.figures import META, new_axes
from metabatch.analysis.frame import Picture
from metabatch.analysis.shap_sample import Sample
from metabatch.lean import let_pandas_in
from metabatch.rundir.layout import class_stems

_LONG = 36


@dataclass(frozen=True)
class Explained:
    """What is drawn of a class.

    top : feature, mean_abs_shap, over all `rows`; the largest first.
    sample : rows with the columns of `top`.
    dependence : of how many of the first features the dependence is drawn.
    """

    name: str
    top: pl.DataFrame
    rows: int
    sample: Sample
    dependence: int


def shap_pictures(explained: Sequence[Explained], classes: Sequence[str], seed: int) -> list[Picture]:
    """The pictures of all classes; a class that no feature moves has none."""
    pictures = []
    with _shap(seed) as shap:
        for one, stem in zip(explained, class_stems(classes), strict=True):
            if not one.top.height:
                continue
            pictures += [_beeswarm(shap, one, stem, classes), _bar(shap, one, stem)]
            if one.dependence:
                pictures.append(_dependence(shap, one, stem, classes))
    return pictures


@contextlib.contextmanager
def _shap(seed: int) -> Iterator[Any]:
    """The package; its warnings (of plots in which nothing varies) are kept back, its random numbers are seeded."""
    state = np.random.get_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        let_pandas_in()
        import shap  # type: ignore[import-untyped, unused-ignore]

        np.random.seed(seed % 2**32)  # shap jitters points by numpy's global generator
        try:
            yield shap
        finally:
            np.random.set_state(state)


def _beeswarm(shap: Any, one: Explained, stem: str, classes: Sequence[str]) -> Picture:
    sample, shown = one.sample, one.top.height
    figure, axes = new_axes(7.5, 1.6 + 0.36 * shown)
    drawn = shap.Explanation(values=sample.contributions, data=sample.values, feature_names=_labels(one))
    # In the order of the table, which is that over all rows.
    shap.plots.beeswarm(
        drawn, max_display=shown, order=np.arange(shown), ax=axes, show=False, plot_size=None, s=9,
        group_remaining_features=False,
    )  # fmt: skip
    axes.set_xlabel(f"SHAP value (log-odds of {_plain(one.name)})", fontsize=11)
    axes.tick_params("y", labelsize=10)
    axes.set_title(f"{_plain(one.name)}: contributions of the top {shown} features, n = {len(sample):,} rows")
    caption = (
        f"{one.name}: what the {shown} features with the largest mean |SHAP| contribute to the margin of each of "
        f"{len(sample):,} rows, drawn alike from all classes out of {one.rows:,}; grey: value missing."
    )
    return Picture(f"shap_{stem}_beeswarm", caption, figure, _numbers(one, shown, classes, missing=True))


def _bar(shap: Any, one: Explained, stem: str) -> Picture:
    shown = one.top.height
    figure, axes = new_axes(7.5, 1.4 + 0.36 * shown)
    size = one.top["mean_abs_shap"].to_numpy()
    shap.plots.bar(shap.Explanation(values=size, feature_names=_labels(one)), max_display=shown, ax=axes, show=False)
    axes.set_xlabel("mean |SHAP| (log-odds)", fontsize=11)
    axes.tick_params("y", labelsize=10)
    axes.set_title(f"{_plain(one.name)}: top {shown} features, n = {one.rows:,} rows")
    caption = f"{one.name}: weighted mean size of the contributions to the margin, over {one.rows:,} rows."
    return Picture(f"shap_{stem}_bar", caption, figure, one.top.select("feature", "mean_abs_shap"))


def _dependence(shap: Any, one: Explained, stem: str, classes: Sequence[str]) -> Picture:
    # shap's scatter plot wants a figure that pyplot manages; closed, it can still be saved.
    from matplotlib import pyplot as plt

    shown = min(one.dependence, one.top.height)
    sample, wide = one.sample, min(shown, 2)
    tall = -(-shown // wide)
    figure: Figure = plt.figure(figsize=(3.9 * wide, 0.4 + 3.2 * tall), layout="constrained")
    lacking = []
    try:
        for number, label in enumerate(_labels(one)[:shown]):
            axes = figure.add_subplot(tall, wide, number + 1)
            known = ~np.isnan(sample.values[:, number])
            if (~known).any():
                lacking.append(f"{one.top['feature'][number]} ({int((~known).sum()):,} rows)")
            if known.any():
                drawn = shap.Explanation(
                    values=sample.contributions[known, number], data=sample.values[known, number], feature_names=label
                )
                # Neither jitter nor histogram: what is drawn is what the CSV has.
                shap.plots.scatter(
                    drawn, color=META, hist=False, x_jitter=0, dot_size=9, alpha=0.5, ax=axes, show=False
                )
            axes.axhline(0, color="#767676", linewidth=0.7, zorder=-1)
            axes.set_xlabel(f"value of {label}", fontsize=10)
            axes.set_ylabel("SHAP value (log-odds)", fontsize=10)
            axes.set_title(f"n = {int(known.sum()):,} rows", fontsize=10)
            axes.tick_params(labelsize=9)
        figure.suptitle(f"{_plain(one.name)}: contribution against value, n = {len(sample):,} rows")
    finally:
        plt.close(figure)
    left_out = f" Rows without a value are left out: {', '.join(lacking)}." if lacking else " No value is missing."
    caption = (
        f"{one.name}: contribution of the top {shown} features against their value; of {len(sample):,} rows, drawn "
        f"alike from all classes.{left_out}"
    )
    return Picture(f"shap_{stem}_dependence", caption, figure, _numbers(one, shown, classes, missing=False))


def _numbers(one: Explained, shown: int, classes: Sequence[str], *, missing: bool) -> pl.DataFrame:
    """row, class, feature, value, shap: a point each; with `missing` also those without a value."""
    sample, n = one.sample, len(one.sample)
    frame = pl.DataFrame(
        {
            "row": np.tile(sample.row, shown),
            "class": np.tile(np.array(classes)[sample.label], shown).tolist(),
            "feature": np.repeat(np.arange(shown), n),
            "value": sample.values[:, :shown].T.ravel(),
            "shap": sample.contributions[:, :shown].T.ravel(),
        }
    ).with_columns(
        pl.col("feature").replace_strict(list(range(shown)), one.top["feature"].head(shown)),
        pl.col("value").fill_nan(None),
    )
    return frame if missing else frame.filter(pl.col("value").is_not_null())


def _labels(one: Explained) -> list[str]:
    return [_plain(name) for name in one.top["feature"]]


def _plain(name: str) -> str:
    """A name as a label: not too long, and no formula."""
    return (name if len(name) <= _LONG else f"{name[: _LONG - 1]}…").replace("$", r"\$")
