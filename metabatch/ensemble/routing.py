"""Weights of members by gene: genes alike in a feature of the whole gene (its length, say) share a route.

Only a feature that is the same in all rows of a gene can route: a row then knows its route by itself, and prediction
stays a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from metabatch.data.batches import as_float32, as_numpy
from metabatch.models.pooling import pool
from metabatch.rundir.bundle import Combination

ROUTES = 3
# A route of so many genes lies halfway between its own weights and those of all genes.
_HALFWAY_GENES = 10

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, ...]]
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


class GeneLevels:
    """Finds the features that are the same in all rows of a gene, while the rows stream by.

    Parameters
    ----------
    names : sequence of str
        Features.
    genes : int
        Number of genes.
    """

    def __init__(self, names: Sequence[str], genes: int) -> None:
        self._names = list(names)
        self._genes = genes
        self._seen: dict[str, np.ndarray] = {}

    def see(self, table: pa.Table, gene: np.ndarray) -> None:
        """Rows, and the number of each row's gene; a feature with missing values is none for all genes."""
        kept = []
        for name in self._names:
            if name not in table.column_names:
                continue
            value = as_numpy(as_float32(table.column(name)).fill_null(float("nan")))
            seen = self._seen.get(name)
            if seen is None:
                seen = np.full(self._genes, np.nan, dtype=np.float32)
            new = np.isnan(seen[gene])
            seen[gene[new]] = value[new]
            if np.array_equal(seen[gene], value):
                self._seen[name] = seen
                kept.append(name)
            else:
                self._seen.pop(name, None)
        self._names = kept

    def found(self) -> dict[str, np.ndarray]:
        """Feature -> its value of each gene, float32, shape (genes,); those with a few genes a route at least."""
        return {
            n: self._seen[n] for n in self._names if n in self._seen and len(np.unique(self._seen[n])) >= 2 * ROUTES
        }


def fit_routing(
    proba: np.ndarray, label: np.ndarray, weight: np.ndarray, levels: Mapping[str, np.ndarray], gene: np.ndarray,
    fit: Fit, loss: Loss,
) -> Combination:  # fmt: skip
    """Routes by the feature of the smallest log loss; the first of equals.

    The genes are cut into thirds by their values (genes of one value stay together); weights of each third are fitted
    on it and drawn towards those of all genes, the more the fewer genes it has.

    Parameters
    ----------
    levels : mapping
        Feature -> value of each row, shape (n,).
    gene : ndarray of int, shape (n,)
        Number of each row's gene.
    fit : callable
        Weights of the members from proba, label, weight.
    loss : callable
        Log loss of pooled probabilities, shape (n, k), label and weight.
    """
    of_all = np.array(fit(proba, label, weight))
    best, taken = np.inf, None
    for name, level in levels.items():
        _, first = np.unique(gene, return_index=True)
        cuts = np.quantile(level[first], np.arange(1, ROUTES) / ROUTES, method="inverted_cdf")
        edges = np.unique(cuts[cuts > level.min()])  # an edge begins a route: none before the lowest value
        routes = []
        for route in range(len(edges) + 1):
            here = np.searchsorted(edges, level, side="right") == route
            own = of_all
            if len(np.unique(label[here & (weight > 0)])) > 1:
                genes = len(np.unique(gene[here]))
                share = genes / (genes + _HALFWAY_GENES)
                own = share * np.array(fit(proba[:, here], label[here], weight[here])) + (1 - share) * of_all
            routes.append(tuple(map(float, own)))
        rule = Combination(
            method="routing", weights=tuple(map(float, np.mean(routes, axis=0))), feature=name,
            edges=tuple(map(float, edges)), routes=tuple(routes),
        )  # fmt: skip
        found = loss(pool(proba, rule, level), label, weight)
        if found < best:
            best, taken = found, rule
    if taken is None:
        raise ValueError("no feature to route by")
    return taken
