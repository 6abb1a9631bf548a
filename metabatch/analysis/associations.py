"""How each feature goes with each class in the data, whatever a model makes of it: information, effect size, test.

Mutual information, in nats, of the binned feature and "class or not": plug-in estimate less the bias of Miller and
Madow (G. Miller, in Information Theory in Psychology, 1955; L. Paninski, Neural Computation 2003). A feature of more
than ten values is cut into tenths of the rows; missing cells are a bin of their own, so that missingness that goes
with the class is seen.

Effect size: Cliff's delta (N. Cliff, Psychological Bulletin 1993), the chance that a row of the class has the larger
value less the chance that it has the smaller one: 2 ROC AUC - 1, from -1 to 1. Rows that lack the value are left out.

p-value: rows of a gene are not independent, so a test by rows would take a feature of the gene for evidence. Here
every gene that has rows of the class and others gives one number, the difference of their mean ridits (ranks as part
of all; I. Bross, Biometrics 1958), and Student's t-test says whether its mean over genes is 0. Not Wilcoxon's
signed-rank test: a few rows against many make the differences of a skewed feature (a rare k-mer) skewed too, and then
it rejects a true null hypothesis (34 % at p < 0.05 for a value in a tenth of the rows, 2 rows against 10 in each of
300 genes; the t-test 5 %). What is constant within genes has differences of 0 and p = 1: this test cannot tell it from
chance. q: Benjamini and Hochberg 1995, over the features of a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from scipy.special import entr  # type: ignore[import-untyped,unused-ignore]
from scipy.stats import false_discovery_control, t  # type: ignore[import-untyped,unused-ignore]

from metabatch.analysis.sampling import MatrixRows
from metabatch.data.batches import as_numpy
from metabatch.rundir.manifests import Feature

BINS = 10
# Fewer genes than this with both kinds of rows: no p-value.
LEAST_UNITS = 6
# Features whose differences are held together: units x _BLOCK x classes numbers.
_BLOCK = 32


def associations(
    rows: MatrixRows, features: Sequence[Feature], classes: Sequence[str], check: Callable[[], None]
) -> pl.DataFrame:
    """Columns class, feature, mutual_information, effect_size, p_value, q_value.

    Null where the rows do not allow it: no row of the class or none besides, no value, too few genes.
    `check` is called every few features.
    """
    k = len(classes)
    names, unit = np.unique(rows.unit, return_inverse=True)
    units = len(names)
    label = rows.label.astype(np.int64)
    information, effect, p = (np.full((k, len(features)), np.nan) for _ in range(3))
    for start in range(0, len(features), _BLOCK):
        check()
        block = range(start, min(start + _BLOCK, len(features)))
        differences = np.full((len(block), k, units), np.nan)
        for at, i in enumerate(block):
            values, present = _values(rows.table.column(i), features[i])
            here, weight = label[present], rows.weight[present]
            known, level, counts = np.unique(values[present], return_inverse=True, return_counts=True)
            mass = _sums(level * k + here, weight, (len(known), k))
            absent = np.bincount(label[~present], rows.weight[~present], minlength=k)
            information[:, i] = _information(np.vstack([_binned(mass, counts), absent]), rows.weight)
            if mass.any():
                effect[:, i] = _delta(mass)
                differences[at] = _differences(_ridits(mass)[level], unit[present] * k + here, weight, units, k)
        p[:, start : block.stop] = _t_test(differences).T
    q = np.full_like(p, np.nan)
    for c in range(k):
        q[c] = false_discoveries(p[c])
    return pl.DataFrame(
        {
            "class": [c for c in classes for _ in features],
            "feature": [f.name for f in features] * k,
            "mutual_information": information.ravel(),
            "effect_size": effect.ravel(),
            "p_value": p.ravel(),
            "q_value": q.ravel(),
        }
    ).fill_nan(None)


def false_discoveries(p: np.ndarray) -> np.ndarray:
    """q-values of Benjamini and Hochberg over the p-values that are not NaN."""
    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _values(column: pa.ChunkedArray, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which are there. Where the matrix marks zeros as missing, what is missing is taken for a zero."""
    missing = as_numpy(column.is_null())
    values = as_numpy(column.fill_null(pa.scalar(0).cast(column.type)) if column.null_count else column)
    if feature.missing == "zero-as-missing":
        missing = np.zeros(len(values), dtype=bool)
    if feature.sentinel is not None:
        missing = missing | (values == np.float32(feature.sentinel))
    return values, ~(missing | np.isnan(values))


def _sums(code: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(code, weight, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)


def _binned(mass: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weight by value and class -> weight by bin and class; values stay whole."""
    if len(mass) <= BINS:
        return mass
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    bins = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    return np.add.reduceat(mass, np.flatnonzero(np.diff(bins, prepend=-1)), axis=0)


def _information(mass: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Per class, nats; the bias is that of the effective number of rows (Kish), and the result is never below 0."""
    total = mass.sum()
    if total <= 0:
        return np.full(mass.shape[1], np.nan)
    rows = weight.sum() ** 2 / (weight**2).sum()
    by_bin = mass.sum(axis=1) / total
    found = np.full(mass.shape[1], np.nan)
    for c in range(mass.shape[1]):
        joint = np.stack([mass[:, c], mass.sum(axis=1) - mass[:, c]]) / total
        side = joint.sum(axis=1)
        if (side > 0).all():
            plain = entr(side).sum() + entr(by_bin).sum() - entr(joint).sum()
            bias = (np.count_nonzero(joint) - np.count_nonzero(by_bin) - 1) / (2 * rows)
            found[c] = max(0.0, plain - bias)
    return found


def _delta(mass: np.ndarray) -> np.ndarray:
    """Cliff's delta of each class against the rest from the weight by value (ascending) and class."""
    rest = mass.sum(axis=1, keepdims=True) - mass
    pairs = mass.sum(axis=0) * rest.sum(axis=0)
    larger = (mass * (np.cumsum(rest, axis=0) - rest / 2)).sum(axis=0)
    return np.divide(2 * larger, pairs, out=np.full(mass.shape[1], np.nan), where=pairs > 0) - 1


def _ridits(mass: np.ndarray) -> np.ndarray:
    """Of each value: the part of all weight below it, and half of its own."""
    weight = mass.sum(axis=1)
    return (np.cumsum(weight) - weight / 2) / weight.sum()


def _differences(ridit: np.ndarray, cell: np.ndarray, weight: np.ndarray, units: int, k: int) -> np.ndarray:
    """Mean ridit of the class less that of the other rows, shape (k, units); NaN where a unit lacks one side.

    cell : int, shape (n,): unit x k + class of each row.
    """
    weights, sums = _sums(cell, weight, (units, k)), _sums(cell, weight * ridit, (units, k))
    others, of_others = weights.sum(axis=1, keepdims=True) - weights, sums.sum(axis=1, keepdims=True) - sums
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where((weights > 0) & (others > 0), sums / weights - of_others / others, np.nan)
    found[np.abs(found) < 1e-9] = 0  # rounding: a feature of the gene has no difference within it
    return found.T


def _t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p over the last axis; NaN for too few units, 1 when no unit has a difference."""
    known = np.isfinite(differences)
    n = known.sum(axis=-1)
    enough = n >= LEAST_UNITS
    n = np.maximum(n, 2)
    mean = np.where(known, differences, 0).sum(axis=-1) / n
    spread = np.where(known, differences - mean[..., None], 0)
    error = np.sqrt((spread**2).sum(axis=-1) / (n - 1) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(mean) / error, n - 1)
    return np.where(enough, np.where(mean == 0, 1.0, p), np.nan)
