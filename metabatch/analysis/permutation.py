"""Permutation importance by blocks of genes, on rows that the model did not train on (L. Breiman, Mach. Learn. 2001).

Shuffling rows would break more than the tie between feature and label: neighbouring rows of a gene have similar
values, and a gene's own properties are the same in all of them. So values move as blocks. In every repeat the genes
form one random cycle, each takes the values of the next one, and these are turned round by a random part of the gene:
a row at the part r of its gene's weight gets the value of the row at the part r + shift (mod 1) of the other gene.
Order and likeness of neighbours stay, and so do the natural shares of the values: a row drawn to stand for many is
taken as often as they would be. All features of a repeat move in the same way, so that a group of features moved
together keeps what its features say about each other. With one gene alone its values are only turned round.

The spread is that over repeats, not over genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import xgboost as xgb

from metabatch.analysis.bounds import PERMUTED_ROWS
from metabatch.analysis.sampling import MatrixRows, draw_rows
from metabatch.data.matrices import as_matrix
from metabatch.metrics.bootstrap import Ranking

REPEATS = 3
MOST_FEATURES = 40
MEASURED = ("permutation", "permutation_sd", "permutation_ap")
UNUSED, UNMEASURED = "the model has no split on it", f"not among the first {MOST_FEATURES} by gain"
NO_CV, NO_ROWS = "no cross-validation: no rows that a model did not train on", "held-out rows are all of one side"


@dataclass(frozen=True)
class Job:
    """Columns of the matrix to move together, and the classes whose models are asked."""

    name: str
    columns: tuple[int, ...]
    classes: tuple[str, ...]


def permutation_importance(
    models: Mapping[str, xgb.Booster], rows: MatrixRows, classes: Sequence[str], used: pl.DataFrame, *, seed: int,
    threads: int, check: Callable[[], None],
) -> tuple[pl.DataFrame, pl.DataFrame]:  # fmt: skip
    """Permutation of the features that carry most gain, and of whole groups of features.

    Parameters
    ----------
    models : mapping
        Class -> a model that did not train on `rows`.
    used : DataFrame
        class, feature, group, gain (of the delivered model), fold_gain (of `models`), in matrix order within classes.

    Returns
    -------
    by_feature, by_group : DataFrame
        class, feature or group, permutation, permutation_sd, permutation_ap (see `permuted`), permutation_note. A
        model cannot lose by a feature on which it has no split: exactly 0. By feature, the first `MOST_FEATURES` by
        gain are moved; the others are null, and the note says so.
    """
    have = [c for i, c in enumerate(classes) if c in models and 0 < np.count_nonzero(rows.label == i) < len(rows)]
    for c in have:
        models[c].set_param({"nthread": threads})
    split_on = used.filter(pl.col("class").is_in(have) & (pl.col("fold_gain") > 0))
    first = split_on.sort("gain", "fold_gain", descending=True, maintain_order=True)
    first = first.group_by("class", maintain_order=True).head(MOST_FEATURES)
    features = used["feature"].unique(maintain_order=True).to_list()
    found = []
    for chosen, by in ((first, "feature"), (split_on, "group")):
        jobs = _jobs(chosen, by, features)
        moved = permuted(models, rows, jobs, classes, seed=seed, check=check).rename({"name": by})
        of = used.group_by("class", by, maintain_order=True).agg(pl.col("fold_gain").sum())
        note = (
            pl.when(~pl.col("class").is_in(have)).then(pl.lit(NO_ROWS))
            .when(pl.col("fold_gain") == 0).then(pl.lit(UNUSED))
            .when(pl.col("permutation").is_null()).then(pl.lit(UNMEASURED))
            .otherwise(pl.lit(""))
        )  # fmt: skip
        of = of.join(moved, on=["class", by], how="left", maintain_order="left").with_columns(permutation_note=note)
        zero = pl.when(pl.col("permutation_note") == UNUSED).then(0.0)
        of = of.with_columns(zero.otherwise(pl.col(c)).alias(c) for c in MEASURED).drop("fold_gain")
        found.append(of)
    return found[0], found[1]


def _jobs(chosen: pl.DataFrame, by: str, features: list[str]) -> list[Job]:
    column = {f: i for i, f in enumerate(features)}
    return [
        Job(str(name), tuple(sorted({column[f] for f in part["feature"]})), tuple(sorted(set(part["class"]))))
        for (name,), part in chosen.group_by(by, maintain_order=True)
    ]


def permuted(
    models: Mapping[str, xgb.Booster], rows: MatrixRows, jobs: Sequence[Job], classes: Sequence[str], *, seed: int,
    check: Callable[[], None],
) -> pl.DataFrame:  # fmt: skip
    """What the models lose when columns are moved between genes.

    Parameters
    ----------
    rows : MatrixRows
        At most `PERMUTED_ROWS`: see `fewer`. They are held as float32: 19 MB for 1,167 features.
    check : callable
        Called before every job.

    Returns
    -------
    DataFrame
        class, name (of the job), permutation (increase of the weighted log loss of class against rest, nats,
        before calibration; mean over repeats), permutation_sd, permutation_ap (drop of average precision; null
        without a row of the class).
    """
    batch = as_matrix(rows.table)
    truth = {c: rows.label == i for i, c in enumerate(classes)}
    asked = sorted({c for job in jobs for c in job.classes}, key=list(classes).index)
    before = {c: _score(models[c], batch, truth[c], rows.weight) for c in asked}
    maps = block_maps(rows.unit, rows.weight, REPEATS, seed)
    found = []
    for job in jobs:
        check()
        after: dict[str, list[tuple[float, float]]] = {c: [] for c in job.classes}
        kept = batch[:, job.columns]
        for moved in maps:
            batch[:, job.columns] = kept[moved]
            for c in job.classes:
                after[c].append(_score(models[c], batch, truth[c], rows.weight))
        batch[:, job.columns] = kept
        for c, scores in after.items():
            loss = np.array([s[0] - before[c][0] for s in scores])
            drop = np.array([before[c][1] - s[1] for s in scores])
            found.append((c, job.name, float(loss.mean()), float(loss.std(ddof=1)), float(drop.mean())))
    schema = {"class": pl.String, "name": pl.String, **dict.fromkeys(MEASURED, pl.Float64)}
    return pl.DataFrame(found, schema=schema, orient="row").fill_nan(None)


def fewer(rows: MatrixRows, classes: int, seed: int) -> MatrixRows:
    """At most `PERMUTED_ROWS` rows, every class alike; the weights stand for those left out."""
    if len(rows) <= PERMUTED_ROWS:
        return rows
    chosen, times = draw_rows(rows.label, PERMUTED_ROWS, classes, seed)
    table = rows.table.combine_chunks().take(pa.array(chosen))
    return MatrixRows(table, rows.label[chosen], rows.weight[chosen] * times, rows.unit[chosen])


def block_maps(unit: np.ndarray, weight: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    """For each repeat, the row from which each row takes its value; int64, shape (repeats, n). See the module."""
    _, code, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    code, weight = code[order], weight[order]
    total = np.bincount(code, weight)
    weight = np.where(total[code] > 0, weight, 1.0)  # a gene of no weight: its rows count alike
    total = np.bincount(code, weight)
    first = np.cumsum(sizes) - sizes
    through = np.cumsum(weight)
    until = through - (through[first] - weight[first])[code]
    middle, until = (until - weight / 2) / total[code], until / total[code]
    result = np.empty((repeats, len(unit)), dtype=np.int64)
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        cycle = rng.permutation(len(sizes))
        partner = np.empty_like(cycle)
        partner[cycle] = np.roll(cycle, -1)
        shift = rng.random(len(sizes))
        other = partner[code]
        place = np.searchsorted(code + until, other + (middle + shift[code]) % 1.0, side="right")
        taken = np.clip(place, first[other], first[other] + sizes[other] - 1)
        result[repeat, order] = order[taken]
    return result


def _score(model: xgb.Booster, batch: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted log loss and average precision."""
    p = model.inplace_predict(batch).astype(np.float64)
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(truth, clipped, 1 - clipped))
    return float(np.average(loss, weights=weight)), Ranking.of(p, truth).average_precision(weight)
