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
import pyarrow as pa
import pyarrow.compute as pc
import xgboost as xgb

from metabatch.analysis.frame import Found, ImpossibleError
from metabatch.analysis.moments import Moments
from metabatch.analysis.sampling import MatrixRows
from metabatch.analysis.shap_pictures import Explained, shap_pictures
from metabatch.analysis.shap_sample import KeptRows
from metabatch.analysis.shap_words import TOP, shap_flags, shap_sentences, shap_shown, top_features
from metabatch.data.batches import as_float32, as_numpy
from metabatch.resources.usage import trim_memory
from metabatch.rundir.manifests import Feature

# Fewer rows at once take longer, more only take memory. Sums are made of blocks that fit a CPU's cache.
CHUNK_ROWS, _BLOCK_ROWS = 1_024, 128
PLOT_ROWS, DEPENDENCE = 1_000, 4
# Largest difference allowed between a row's margin and the sum of its contributions, log-odds.
ADDITIVITY = 1e-3
# Of the chunk: values, XGBoost's copy (twice while it is made), contributions, and the rows of both that are kept.
_CELL_BYTES, _BLOCK_COPIES, _SUM_COPIES = 4 + 16 + 4 + 4, 9, 30
# shap and what it imports, and figures of 1,000 rows and 15 features.
_PICTURE_BYTES, _PICTURE_CLASS_BYTES = 48 << 20, 12 << 20


def shap_bytes(features: int, classes: int, width: float) -> int:
    """Most bytes that `explain` holds beside its input chunk and the boosters.

    Parameters
    ----------
    width : float
        Bytes of a row in the types of the features: the table of the chunk before is held while the next is made.
    """
    sums = classes * features * 8 * _SUM_COPIES
    kept = (PLOT_ROWS + classes) * features * 4 * (classes + 1)
    chunk = CHUNK_ROWS * (width + (features + 1) * _CELL_BYTES) + _BLOCK_ROWS * features * 8 * _BLOCK_COPIES
    return round(sums + kept + max(chunk, _PICTURE_BYTES + classes * _PICTURE_CLASS_BYTES))


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
    sums = [_Sums(len(features)) for _ in classes]
    kept = KeptRows(PLOT_ROWS, len(classes), len(features), seed)
    for booster in boosters.values():
        booster.set_param({"nthread": threads})
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
    if not sums[0].rows or not sums[0].weight > 0:
        raise ImpossibleError("no row, or none of any weight, is there to be explained")
    names = [f.name for f in features]
    table = pl.concat([one.table(name, names) for one, name in zip(sums, classes, strict=True)])
    errors = {name: one.error for one, name in zip(sums, classes, strict=True)}
    common = classes[int(np.argmax([one.weight_of_class for one in sums]))]
    explained = []
    for code, name in enumerate(classes):
        first = top_features(table, name, TOP)
        columns = np.array([names.index(n) for n in first["feature"]], dtype=np.int64)
        sample = kept.sample(code, columns)
        explained.append(Explained(name, first, sums[code].rows, sample, 0 if name == common else DEPENDENCE))
    sampled = len(explained[0].sample)
    of_class = {name: one.rows_of_class for one, name in zip(sums, classes, strict=True)}
    bases = {name: one.base for one, name in zip(sums, classes, strict=True)}
    rows_seen, total = sums[0].rows, sums[0].weight
    del kept, sums
    trim_memory()  # before the plots, which need other memory
    check()
    facts: dict[str, Any] = {
        "rows": rows_seen, "weight": total, "rows_of_class": of_class, "base_values": bases,
        "additivity_max_error": errors, "additivity_allowed": ADDITIVITY, "plotted_rows": sampled,
        "top_features": {e.name: e.top["feature"].to_list() for e in explained},
        "features_without_effect": {
            name: table.filter((pl.col("class") == name) & (pl.col("mean_abs_shap") == 0)).height for name in classes
        },
    }  # fmt: skip
    spoken = [name for name in classes if len(classes) <= 3 or name != common][:3]
    return Found(
        on=on,
        says=[
            *shap_sentences(table, spoken),
            f"Sums of contributions equal the margins of all {rows_seen:,} rows to {max(errors.values()):.0e}.",
        ],
        flags=shap_flags(table, features, classes),
        facts=facts,
        shown=shap_shown(table, classes),
        tables={"shap": table},
        pictures=shap_pictures(explained, classes, seed),
    )


def as_matrix(table: pa.Table) -> np.ndarray:
    """The table as XGBoost computes with it, float32, shape (n, features); NaN where missing."""
    found = np.empty((table.num_rows, table.num_columns), dtype=np.float32)
    for number, column in enumerate(table.columns):
        gaps = bool(column.null_count)
        found[:, number] = as_numpy(pc.fill_null(as_float32(column), float("nan")) if gaps else column)
    return found


class _Sums:
    """Sums of one class over the rows seen. `error`: largest difference between margin and contributions."""

    def __init__(self, features: int) -> None:
        self.rows = self.rows_of_class = 0
        self.weight = self.weight_of_class = self.error = 0.0
        self.base = float("nan")
        self._size = Moments.none(features)  # of |contribution| and contribution
        self._known = Moments.none(features)  # of value and contribution, where there is a value
        self._of_class = np.zeros(features)

    def add(
        self, name: str, values: np.ndarray, contributions: np.ndarray, margin: np.ndarray, weight: np.ndarray,
        positive: np.ndarray,
    ) -> None:  # fmt: skip
        """`values`: shape (n, features); `contributions`: shape (n, features + 1), the last is the base value."""
        self.base = float(contributions[0, -1])
        self.rows += len(values)
        self.rows_of_class += int(positive.sum())
        self.weight += float(weight.sum())
        self.weight_of_class += float(weight[positive].sum())
        for start in range(0, len(values), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            block, weights = contributions[part].astype(np.float64), weight[part, None]
            error = float(np.abs(block.sum(axis=1) - margin[part]).max())
            if not error <= ADDITIVITY:
                raise ValueError(
                    f"{name}: the contributions of a row differ from its margin by {error:.2g} log-odds "
                    f"(at most {ADDITIVITY:g} is allowed)"
                )
            self.error = max(self.error, error)
            block = block[:, :-1]
            size = np.abs(block)
            self._of_class += weights[positive[part], 0] @ size[positive[part]]
            self._size += Moments.of(size, block, weights)
            del size
            value = values[part].astype(np.float64)
            missing = np.isnan(value)
            if missing.any():
                value[missing] = 0.0
                weights = np.where(missing, 0.0, weights)
            self._known += Moments.of(value, block, weights)

    def table(self, name: str, features: Sequence[str]) -> pl.DataFrame:
        with_class = self.weight_of_class > 0
        of_class = self._of_class / self.weight_of_class if with_class else np.full(len(features), np.nan)
        return _table([name] * len(features), features, self.rows, self._size, self._known, of_class,
                      np.full(len(features), self.weight_of_class))  # fmt: skip


def _table(
    name: Sequence[str], feature: Sequence[str], rows: int | np.ndarray, size: Moments, known: Moments,
    of_class: np.ndarray, weight_of_class: np.ndarray,
) -> pl.DataFrame:  # fmt: skip
    """shap.parquet. known_* and value_* are over the rows that have a value: with them tables can be pooled."""
    count = np.broadcast_to(np.asarray(rows, dtype=np.int64), len(feature))
    return pl.DataFrame(
        {
            "class": name, "feature": feature, "mean_abs_shap": size.x, "mean_shap": size.y, "sd_shap": size.sd_y(),
            "mean_abs_shap_of_class": of_class, "direction": known.correlation(), "rows": count,
            "weight": size.weight, "weight_of_class": weight_of_class, "known_weight": known.weight,
            "value_mean": known.x, "value_sd": known.sd_x(), "known_mean_shap": known.y,
            "known_sd_shap": known.sd_y(),
        }
    ).with_columns(pl.col("mean_abs_shap_of_class", "direction").fill_nan(None))  # fmt: skip


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
        size += _moments(columns, "weight", "mean_abs_shap", None, "mean_shap", "sd_shap").scaled(factor)
        known += _moments(columns, "known_weight", "value_mean", "value_sd", "known_mean_shap", "known_sd_shap").scaled(
            factor
        )
        of_class += factor * columns["weight_of_class"] * np.nan_to_num(columns["mean_abs_shap_of_class"])
        weight_of_class += factor * columns["weight_of_class"]
    mean_of_class = np.full(first.height, np.nan)
    np.divide(of_class, weight_of_class, out=mean_of_class, where=weight_of_class > 0)
    rows = np.sum([t["rows"].to_numpy() for _, t in tables], axis=0)
    names = first["class"].to_list(), first["feature"].to_list()
    return _table(*names, rows, size, known, mean_of_class, weight_of_class)


def _moments(columns: Mapping[str, np.ndarray], weight: str, x: str, sd_x: str | None, y: str, sd_y: str) -> Moments:
    """Moments as a table holds them."""
    total = columns[weight]
    far_y = columns[sd_y]
    far_x = columns[sd_x] if sd_x else np.zeros_like(far_y)
    together = far_x * far_y * np.nan_to_num(columns["direction"])
    return Moments(total, columns[x], columns[y], total * far_x**2, total * far_y**2, total * together)
