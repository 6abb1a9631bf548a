"""Rules by which members could be combined, each fitted on rows whose genes the speaking members did not train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import minimize, minimize_scalar
from scipy.spatial.distance import squareform
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from metabatch.ensemble.routing import fit_routing
from metabatch.metrics.bootstrap import Ranking
from metabatch.models.calibration import EPS
from metabatch.models.pooling import pool, stacking_features
from metabatch.options import CombinationMethod
from metabatch.rundir.bundle import Combination

_SELECTED = 25  # members drawn, with replacement, by greedy selection
_STEEPEST = 10.0  # of the slope of a logarithmic mean
_STACKING_C = 1.0  # inverse strength of the L2 penalty, rows weighing 1 on average


def fit_rule(
    method: CombinationMethod, proba: np.ndarray, label: np.ndarray, weight: np.ndarray,
    levels: Mapping[str, np.ndarray], gene: np.ndarray,
) -> Combination:  # fmt: skip
    """One way of combining, fitted.

    Parameters
    ----------
    proba : ndarray of shape (m, n, k)
        Members' calibrated probabilities; NaN where a member trained on the row's gene.
    label : ndarray of int, shape (n,)
    weight : ndarray of float64, shape (n,)
    levels : mapping
        Features that are the same in all rows of a gene -> value of each row, shape (n,); for routing.
    gene : ndarray of int, shape (n,)
        Number of each row's gene.
    """
    with threadpool_limits(1):  # the last bit of a threaded sum depends on the number of threads
        if method == "routing":
            return fit_routing(proba, label, weight, levels, gene, _simplex, log_loss)
        learn = _FITS[method]
        return equal(len(proba)) if learn is None else learn(proba, label, weight)


def equal(members: int) -> Combination:
    """The mean of all, which needs no rows to learn from."""
    return Combination(method="mean", weights=(1.0,) * members)


def macro_ap(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Mean over the classes that occur of the weighted average precision."""
    codes = [c for c in range(proba.shape[1]) if 0 < weight[label == c].sum() < weight.sum()]
    return float(np.mean([Ranking.of(proba[:, c], label == c).average_precision(weight) for c in codes]))


def log_loss(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Weighted multi-class log loss, nats, of the rows of which a member speaks; inf where none of weight is left."""
    found = row_losses(proba, label)
    there = ~np.isnan(found) & (weight > 0)
    return float(np.average(found[there], weights=weight[there])) if there.any() else float("inf")


def row_losses(proba: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Multi-class log loss of each row, nats, shape (n,)."""
    return np.asarray(-np.log(np.clip(proba[np.arange(len(label)), label], EPS, 1)))


def _logit_mean(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    """Softmax of a * (mean of the centred log-probabilities), with the a of the smallest log loss.

    With a = 1 the logarithmic mean ranks well and is too sure of itself: a pool needs a calibration of its own
    (R. Ranjan and T. Gneiting, J. R. Stat. Soc. B 2010).
    """
    m, _, k = proba.shape
    x = stacking_features(proba).reshape(-1, m, k).mean(axis=1)
    true = x[np.arange(len(label)), label]
    share = weight / weight.sum()

    def loss(slope: float) -> float:
        return float(share @ (logsumexp(slope * x, axis=1) - slope * true))

    slope = float(minimize_scalar(loss, bounds=(0.0, _STEEPEST), method="bounded").x)
    rows = np.tile(np.eye(k) * (slope / m), m)
    return Combination(
        method="logit-mean", weights=(1.0,) * m, coefficients=tuple(tuple(map(float, r)) for r in rows),
        intercept=(0.0,) * k,
    )  # fmt: skip


def _convex(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    return Combination(method="convex", weights=_simplex(proba, label, weight))


def _simplex(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> tuple[float, ...]:
    """Weights >= 0 with the sum 1 and the smallest log loss, weights of silent members shared by the others.

    With p_m the probability of the true class, a row's loss is log(sum of w over speaking m) - log(sum of w_m p_m);
    w = softmax(v) is found by L-BFGS.
    """
    true = proba[:, np.arange(len(label)), label]
    speaks = ~np.isnan(true)
    p = np.where(speaks, np.clip(true, EPS, 1), 0)
    share = weight / weight.sum()

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        w = np.exp(v - v.max())
        w /= w.sum()
        of_speaking, of_truth = w @ speaks, w @ p
        slope = (speaks / of_speaking - p / of_truth) @ share
        return float(share @ (np.log(of_speaking) - np.log(of_truth))), w * (slope - w @ slope)

    exactly = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}  # the best may lie where a weight is 0: v runs far out
    found = minimize(loss, np.zeros(len(proba)), jac=True, method="L-BFGS-B", options=exactly)
    w = np.exp(found.x - found.x.max())
    return tuple(float(x) for x in w / w.sum())


def _selection(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    """Greedy forward selection with replacement by macro AP (R. Caruana et al., ICML 2004), from the best member."""
    chosen = np.zeros(len(proba))
    best = -np.inf
    for _ in range(_SELECTED):
        tried = []
        for member in range(len(proba)):
            counts = chosen.copy()
            counts[member] += 1
            rule = Combination(method="selection", weights=tuple(counts.tolist()))
            tried.append(macro_ap(pool(proba, rule), label, weight))
        if max(tried) <= best:
            break
        best = max(tried)
        chosen[int(np.argmax(tried))] += 1
    return Combination(method="selection", weights=tuple((chosen / chosen.sum()).tolist()))


def _top(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    """The mean of the k members of smallest log loss, k by the macro AP of that mean; the smallest k of equals."""
    losses = [log_loss(own, label, weight) for own in proba]
    order = np.argsort(losses, kind="stable")
    best, rule = -np.inf, equal(len(proba))
    for k in range(1, len(proba) + 1):
        kept = np.isin(np.arange(len(proba)), order[:k])
        tried = Combination(method="top-k", weights=tuple(kept.astype(float).tolist()))
        found = macro_ap(pool(proba, tried), label, weight)
        if found > best:
            best, rule = found, tried
    return rule


def _hierarchical(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    """Two levels: members whose errors go together are averaged first, then the groups are weighted.

    Average linkage on 1 - correlation of the residuals (probability of the true class short of 1), cut into
    ceil(sqrt(m)) groups; weights of the groups as in `_simplex`.
    """
    true = proba[:, np.arange(len(label)), label]
    m = len(proba)
    together = np.eye(m)
    for a in range(m):
        for b in range(a):
            both = ~np.isnan(true[a]) & ~np.isnan(true[b])
            together[a, b] = together[b, a] = _correlation(true[a, both], true[b, both])
    distance = squareform(1 - together, checks=False)
    group = fcluster(linkage(distance, "average"), int(np.ceil(np.sqrt(m))), "maxclust")
    names = np.unique(group)
    inner = [Combination(method="mean", weights=tuple((group == g).astype(float).tolist())) for g in names]
    means = np.stack(
        [_silent_where_none(proba[group == g], pool(proba, rule)) for g, rule in zip(names, inner, strict=True)]
    )
    outer = dict(zip(names, _simplex(means, label, weight), strict=True))
    weights = tuple(float(outer[g] / np.count_nonzero(group == g)) for g in group)
    return Combination(method="hierarchical", weights=weights)


def _silent_where_none(members: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """A group says nothing of rows of which none of its members speaks."""
    return np.where(np.isnan(members[:, :, :1]).all(axis=0), np.nan, pooled)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _stacking(proba: np.ndarray, label: np.ndarray, weight: np.ndarray) -> Combination:
    """Multinomial regression on the members' log-probabilities, L2 (D. H. Wolpert 1992; L. Breiman 1996)."""
    k = proba.shape[2]
    features = stacking_features(proba)
    model = LogisticRegression(C=_STACKING_C, max_iter=1000, tol=1e-6)
    model.fit(features, label, sample_weight=weight * (len(weight) / weight.sum()))
    coefficients, intercept = np.zeros((k, features.shape[1])), np.full(k, np.log(EPS))
    if len(model.classes_) == 2:  # one row of coefficients: those of the second class against the first
        coefficients[model.classes_[1]], intercept[model.classes_] = model.coef_[0], (0, model.intercept_[0])
    else:
        coefficients[model.classes_], intercept[model.classes_] = model.coef_, model.intercept_
    return Combination(
        method="stacking",
        weights=(1.0,) * len(proba),
        coefficients=tuple(tuple(map(float, row)) for row in coefficients),
        intercept=tuple(map(float, intercept)),
    )


# None: nothing to learn. Routing needs to know more of the rows.
_FITS: dict[CombinationMethod, Callable[[np.ndarray, np.ndarray, np.ndarray], Combination] | None] = {
    "mean": None,
    "logit-mean": _logit_mean,
    "convex": _convex,
    "selection": _selection,
    "top-k": _top,
    "hierarchical": _hierarchical,
    "stacking": _stacking,
}
