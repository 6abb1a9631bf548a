"""Several members' probabilities made one distribution, by the rule that the bundle holds.

A member that may not speak of a row (it trained on its gene) has NaN there; the others share its weight. So one rule
serves for new genes, of which all members speak, and for honest estimates on genes that some trained on.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from metabatch.data.batches import as_float32, as_numpy
from metabatch.models.calibration import EPS, normalise
from metabatch.rundir.bundle import Combination


def pool(proba: np.ndarray, rule: Combination, level: np.ndarray | None = None) -> np.ndarray:
    """Combine members.

    Parameters
    ----------
    proba : ndarray of shape (m, n, k)
        Calibrated probabilities of each member; NaN in all classes where a member does not speak.
    rule : Combination
        Of the same m members.
    level : ndarray of shape (n,), optional
        The rows' values of `rule.feature` (`gene_level`); NaN where there is none. Needed by a rule with routes.

    Returns
    -------
    ndarray of float64, shape (n, k)
        Rows add up to 1, or are NaN where no member speaks. Where only members of weight 0 speak, they count alike.
    """
    if rule.coefficients:
        return _stacked(proba, rule)
    speaks = ~np.isnan(proba[:, :, 0])
    weight = _weights(rule, level) * speaks
    weight[:, weight.sum(axis=0) == 0] = 1
    weight *= speaks
    return _weighted_mean(proba, weight)


def gene_level(table: pa.Table, rule: Combination) -> np.ndarray | None:
    """What `pool` needs to know of the rows of `table` besides the members' scores; None for a rule without routes."""
    if not rule.routes:
        return None
    if rule.feature not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return as_numpy(as_float32(table.column(rule.feature)).fill_null(float("nan")))


def _weights(rule: Combination, level: np.ndarray | None) -> np.ndarray:
    """Of each member, shape (m, n), or (m, 1) where all rows have the same."""
    if not rule.routes:
        return np.array(rule.weights)[:, None]
    if level is None:
        raise ValueError(f"rows are routed by {rule.feature}, which was not given")
    route = np.where(np.isnan(level), len(rule.routes), np.searchsorted(rule.edges, level, side="right"))
    return np.asarray(np.array([*rule.routes, rule.weights]).T[:, route])


def stacking_features(proba: np.ndarray) -> np.ndarray:
    """What the stacked model sees: centred log-probabilities, shape (n, m * k); a silent member says what the others
    say on average.
    """
    logs = _logs(proba)
    logs -= logs.mean(axis=2, keepdims=True)
    silent = np.isnan(logs)
    if silent.any():
        speaks = ~silent
        total = np.where(speaks, logs, 0).sum(axis=0)
        count = speaks.sum(axis=0)
        mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        logs = np.where(silent, mean, logs)
    return np.asarray(logs.transpose(1, 0, 2).reshape(proba.shape[1], -1))


def _stacked(proba: np.ndarray, rule: Combination) -> np.ndarray:
    features = stacking_features(proba)
    z = np.tile(np.array(rule.intercept), (len(features), 1))
    # Not by a matrix product: its last bits depend on how many rows come at once.
    for feature, coefficients in zip(features.T, np.array(rule.coefficients).T, strict=True):
        z += feature[:, None] * coefficients
    return _softmax(z)


def _weighted_mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Over the members of weight, shape (n, k); NaN where there is none."""
    total = np.zeros(values.shape[1:])
    for member, w in zip(values, weight, strict=True):
        total += np.where(w[:, None] > 0, w[:, None] * member, 0)
    mass = weight.sum(axis=0)[:, None]
    return np.divide(total, mass, out=np.full_like(total, np.nan), where=mass > 0)


def _logs(proba: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.clip(proba, EPS, 1)))


def _softmax(z: np.ndarray) -> np.ndarray:
    return normalise(np.exp(z - z.max(axis=1, keepdims=True)))
