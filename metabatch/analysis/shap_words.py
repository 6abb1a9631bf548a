"""A table of contributions in words and small tables: of an instance, or merged over an ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from metabatch.analysis.frame import Shown
from metabatch.rundir.manifests import Feature

TOP = 15
# Correlation of value and contribution from which one direction is spoken of.
_CLEAR = 0.3
# A feature other than a base score with so much of all contributions is worth a look.
_DOMINANT = 0.5


def shap_shown(table: pl.DataFrame, classes: Sequence[str]) -> list[Shown]:
    """The top features of each class, as the report shows them; of a table or a merged one."""
    shown = []
    for name in classes:
        top = top_features(table, name, TOP)
        every = table.filter(pl.col("class") == name).height
        without = "" if top["mean_abs_shap_of_class"].count() else f" No row is a true {name}."
        shown.append(
            Shown(
                title=f"{name}: the {top.height} of {every:,} features that move the margin most",
                columns=("feature", "mean |SHAP|", f"on true {name} rows", "direction"),
                kinds=("text", "small", "small", "text"),
                rows=tuple(
                    (row["feature"], row["mean_abs_shap"], row["mean_abs_shap_of_class"],
                     _direction(row["direction"], name)) for row in top.iter_rows(named=True)
                ),
                note="Mean |SHAP|: weighted mean size of a feature's contribution to the margin, in log-odds. "
                     f"Direction: correlation of value and contribution, where there is a value.{without}",
            )
        )  # fmt: skip
    return shown


def shap_sentences(table: pl.DataFrame, classes: Sequence[str]) -> list[str]:
    """A sentence per class, of a table or a merged one."""
    said = []
    for name in classes:
        top = top_features(table, name, 1)
        if top.height:
            row = top.row(0, named=True)
            said.append(
                f"{name}: {row['feature']} moves the margin most (mean |SHAP| {row['mean_abs_shap']:.2g} log-odds), "
                f"{_direction(row['direction'], name)}."
            )
        else:
            said.append(f"{name}: no feature moves the margin.")
    return said


def top_features(table: pl.DataFrame, name: str, most: int) -> pl.DataFrame:
    """The features of a class with the largest mean |SHAP|; none without effect."""
    here = table.filter((pl.col("class") == name) & (pl.col("mean_abs_shap") > 0))
    return here.sort("mean_abs_shap", descending=True, maintain_order=True).head(most)


def _direction(correlation: float | None, name: str) -> str:
    if correlation is None:
        return "its value does not vary or is missing"
    if abs(correlation) < _CLEAR:
        return "in no single direction"
    return f"higher values speak {'for' if correlation > 0 else 'against'} {name}"


def shap_flags(table: pl.DataFrame, features: Sequence[Feature], classes: Sequence[str]) -> list[str]:
    scores = {f.name for f in features if f.group == "score"}
    flags = []
    for name in classes:
        here = table.filter(pl.col("class") == name)
        top, total = top_features(table, name, 1), float(here["mean_abs_shap"].sum())
        if top.height and top["feature"][0] not in scores and top["mean_abs_shap"][0] >= _DOMINANT * total:
            share = top["mean_abs_shap"][0] / total
            flags.append(
                f"{name}: {top['feature'][0]}, which is no base score, makes {share:.0%} of all contributions: "
                "is it known before the label is?"
            )
    return flags
