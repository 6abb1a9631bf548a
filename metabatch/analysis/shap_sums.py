"""What moves the margin of each class: exact TreeSHAP (Lundberg et al. 2020), summed while the rows stream by.

XGBoost gives the contributions of a chunk of rows to a class's booster (`pred_contribs`); of them only sums over the
rows stay, and a few rows for the plots. A contribution is what a feature adds to a row's margin, in log-odds; those of
a row and the base value add up to the margin of the booster before calibration, which is checked for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import xgboost as xgb

from metabatch.analysis.bounds import CHUNK_ROWS, PLOT_ROWS
from metabatch.analysis.frame import Found, ImpossibleError
from metabatch.analysis.moments import Moments
from metabatch.analysis.sampling import MatrixRows
from metabatch.analysis.shap_pictures import Explained, shap_pictures
from metabatch.analysis.shap_sample import KeptRows
from metabatch.analysis.shap_table import ADDITIVITY, Sums, moments_of, shap_table
from metabatch.analysis.shap_words import TOP, shap_flags, shap_sentences, shap_shown, top_features
from metabatch.data.matrices import as_matrix
from metabatch.resources.usage import trim_memory
from metabatch.rundir.manifests import Feature

DEPENDENCE = 4


def explain(
    boosters: Mapping[str, xgb.Booster], source: Iterable[MatrixRows], features: Sequence[Feature],
    matrix_names: Sequence[str], classes: Sequence[str], *, on: str, seed: int, threads: int,
    check: Callable[[], None],
) -> Found:  # fmt: skip
    """Contributions of all features to the margins of all classes.

    Parameters
    ----------
    boosters : mapping
        Class -> booster, of which all trees are used; their number of threads is set.
    source : iterable of MatrixRows
        Chunks of at most `CHUNK_ROWS` rows; larger ones are cut.
    features, matrix_names : sequences
        In matrix order, and as XGBoost knows them.
    on : str
        Which rows, and with which model.
    check : callable
        Called between chunks; raises when the work is to stop.

    Raises
    ------
    ImpossibleError
        No rows, or none that weighs anything.
    ValueError
        Contributions that do not add up to the margin.
    """
    for booster in boosters.values():
        booster.set_param({"nthread": threads})
    sums, kept = _stream(boosters, source, matrix_names, classes, seed, threads, check)
    table, explained = _summed(sums, kept, [f.name for f in features], classes)
    facts = _facts(sums, table, explained, classes)
    del kept, sums
    trim_memory()  # before the plots, which need other memory
    check()
    worst = max(facts["additivity_max_error"].values())
    return Found(
        on=on,
        says=[
            *shap_sentences(table, _spoken_of(explained)),
            f"Sums of contributions equal the margins of all {facts['rows']:,} rows to {worst:.0e}.",
        ],
        flags=shap_flags(table, features, classes),
        facts=facts,
        shown=shap_shown(table, classes),
        tables={"shap": table},
        pictures=shap_pictures(explained, classes, seed),
    )


def _stream(
    boosters: Mapping[str, xgb.Booster], source: Iterable[MatrixRows], matrix_names: Sequence[str],
    classes: Sequence[str], seed: int, threads: int, check: Callable[[], None],
) -> tuple[list[Sums], KeptRows]:  # fmt: skip
    sums = [Sums(len(matrix_names)) for _ in classes]
    kept = KeptRows(PLOT_ROWS, len(classes), len(matrix_names), seed)
    for rows in source:
        for start in range(0, len(rows), CHUNK_ROWS):
            check()
            part = slice(start, start + CHUNK_ROWS)
            values = as_matrix(rows.table.slice(start, CHUNK_ROWS))
            label, weight = rows.label[part], rows.weight[part].astype(np.float64)
            matrix = xgb.DMatrix(values, feature_names=list(matrix_names), missing=np.nan, nthread=threads)
            came, places = kept.admit(label, values)
            for code, name in enumerate(classes):
                contributions = boosters[name].predict(matrix, pred_contribs=True)
                margin = boosters[name].predict(matrix, output_margin=True)
                sums[code].add(name, values, contributions, margin, weight, label == code)
                kept.put(code, places, contributions[came, :-1])
                del contributions
            del matrix, values
    if not sums[0].weight > 0:
        raise ImpossibleError("no row, or none of any weight, is there to be explained")
    return sums, kept


def _summed(
    sums: Sequence[Sums], kept: KeptRows, features: Sequence[str], classes: Sequence[str]
) -> tuple[pl.DataFrame, list[Explained]]:
    """The table of all classes, and what is drawn of each: no dependence of the most frequent class."""
    table = pl.concat([one.table(name, features) for one, name in zip(sums, classes, strict=True)])
    common = int(np.argmax([one.weight_of_class for one in sums]))
    explained = []
    for code, name in enumerate(classes):
        top = top_features(table, name, TOP)
        columns = np.array([features.index(n) for n in top["feature"]], dtype=np.int64)
        sample = kept.sample(code, columns)
        explained.append(Explained(name, top, sums[code].rows, sample, 0 if code == common else DEPENDENCE))
    return table, explained


def _facts(
    sums: Sequence[Sums], table: pl.DataFrame, explained: Sequence[Explained], classes: Sequence[str]
) -> dict[str, Any]:
    idle = table.filter(pl.col("mean_abs_shap") == 0)["class"]
    by_class = dict(zip(classes, sums, strict=True))
    return {
        "rows": sums[0].rows,
        "weight": sums[0].weight,
        "rows_of_class": {name: one.rows_of_class for name, one in by_class.items()},
        "base_values": {name: one.base for name, one in by_class.items()},
        "additivity_max_error": {name: one.error for name, one in by_class.items()},
        "additivity_allowed": ADDITIVITY,
        "plotted_rows": len(explained[0].sample),
        "top_features": {one.name: one.top["feature"].to_list() for one in explained},
        "features_without_effect": {name: int((idle == name).sum()) for name in classes},
    }


def _spoken_of(explained: Sequence[Explained]) -> list[str]:
    """At most three classes: rather those whose dependence is drawn."""
    first = sorted(explained, key=lambda one: not one.dependence)[:3]
    return [one.name for one in explained if one in first]


def merge_shap(tables: Sequence[tuple[float, pl.DataFrame]]) -> pl.DataFrame:
    """The table of an ensemble: as if each member's rows weighed its part of `tables` together.

    Means are weighted means; the variance is that within the members and that between their means (law of total
    variance); the direction is the correlation of the pooled moments. Members of the weights of their rows give what
    one pass over all rows would.

    Parameters
    ----------
    tables : sequence of (float, polars.DataFrame)
        Weight of a member, and its table; all of the same classes and features.
    """
    first = tables[0][1]
    if any(not t.select("class", "feature").equals(first.select("class", "feature")) for _, t in tables):
        raise ValueError("tables of other classes or features cannot be merged")
    whole = np.sum([t["weight"].to_numpy() for _, t in tables], axis=0)
    share = np.array([w for w, _ in tables], dtype=np.float64)
    size, known = Moments.none(first.height), Moments.none(first.height)
    of_class, weight_of_class = np.zeros(first.height), np.zeros(first.height)
    for part, table in zip(share / share.sum(), (t for _, t in tables), strict=True):
        columns = {n: table[n].to_numpy() for n in table.columns if table[n].dtype.is_numeric()}
        factor = part * whole / columns["weight"]
        size += moments_of(columns, "weight", "mean_abs_shap", None, "mean_shap", "sd_shap").scaled(factor)
        known += moments_of(
            columns, "known_weight", "value_mean", "value_sd", "known_mean_shap", "known_sd_shap"
        ).scaled(factor)
        of_class += factor * columns["weight_of_class"] * np.nan_to_num(columns["mean_abs_shap_of_class"])
        weight_of_class += factor * columns["weight_of_class"]
    mean_of_class = np.full(first.height, np.nan)
    np.divide(of_class, weight_of_class, out=mean_of_class, where=weight_of_class > 0)
    rows = np.sum([t["rows"].to_numpy() for _, t in tables], axis=0)
    names = first["class"].to_list(), first["feature"].to_list()
    return shap_table(*names, rows, size, known, mean_of_class, weight_of_class)
