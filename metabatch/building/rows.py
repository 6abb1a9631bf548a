"""Which positions of a gene become rows, and how many positions each of them stands for.

All sites; the best-scored negatives; some of the next-best; some of the rest. A model that never sees the negatives
just below the top is worse than its base at natural prevalence, and a threshold rule does not show it them (measured:
SOURCE.md of the demo, examples/hg19-demo). Weights are inverse selection probabilities within a tier of a gene, so that
a gene's weights add up to its length; they know the label and are never a feature.
"""

from __future__ import annotations

import hashlib
import math

import msgspec
import numpy as np

from metabatch.building.base_scores import check_scores
from metabatch.building.genes import ACCEPTOR, DONOR
from metabatch.errors import InputError, UsageError


class RowSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rows are chosen; multiples are of the gene's sites (of one, where it has none), rounded to whole rows.

    all_positions : every position, of weight 1; nothing else counts then. best : best-scored negatives.
    next_pool, next_drawn : so many of the next-best negatives, and how many are drawn of them.
    rows_per_gene : mean over the genes. min_random : least number drawn of the other negatives.
    """

    all_positions: bool = False
    best: float = 3
    next_pool: float = 60
    next_drawn: float = 7
    rows_per_gene: int = 400
    min_random: int = 100

    def __post_init__(self) -> None:
        """Refuse what would leave positions without a row that stands for them.

        Raises
        ------
        UsageError
            A negative number, more drawn than there are to draw from, no row or no random row for a gene.
        """
        for name, least in (("best", 0), ("next_pool", 0), ("next_drawn", 0), ("rows_per_gene", 1), ("min_random", 1)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UsageError(f"{name} = {value}", expected=f"a number, at least {least}")
        if self.next_drawn > self.next_pool:
            raise UsageError(
                f"{self.next_drawn:g} times the sites drawn out of {self.next_pool:g} times the sites",
                expected="next_drawn not above next_pool",
            )


def targets(sampling: RowSampling, lengths: np.ndarray) -> np.ndarray:
    """Rows each gene is to have (int64, shape (genes,)): as the root of its length, rows_per_gene in the mean."""
    roots = np.sqrt(lengths.astype(np.float64))
    # fsum rounds once, so that the order of the genes leaves every target as it is.
    mean = math.fsum(roots.tolist()) / max(len(roots), 1)
    return np.rint(sampling.rows_per_gene * roots / mean).astype(np.int64)


def select_rows(
    sampling: RowSampling, gene_id: str, labels: np.ndarray, scores: np.ndarray, target: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a gene and their sampling weights, decided by the gene, the seed and the number asked for.

    Parameters
    ----------
    labels : uint8, shape (length,)
        0 neither, 1 donor, 2 acceptor.
    scores : float32, shape (length, 3)
        Negatives are ranked by the higher of donor and acceptor score; ties by index.
    target : int
        Rows wanted in all (`targets`). A gene of at most as many positions as are asked for gives all of them; one
        whose next-best are nearly all the others stays below its target.

    Returns
    -------
    index : int64, ascending
    weight : float32
        Positions each row stands for; they add up to the gene's length.

    Raises
    ------
    InputError
        Scores that are no probabilities.
    """
    length = len(labels)
    if scores.shape != (length, 3):
        raise InputError(f"base scores of shape {scores.shape}", expected=f"({length}, 3)", where=f"gene {gene_id}")
    check_scores(scores, where=f"gene {gene_id}")
    sites = np.flatnonzero(labels != 0)
    unit = max(len(sites), 1)
    best, pool, drawn = (round(times * unit) for times in (sampling.best, sampling.next_pool, sampling.next_drawn))
    asked = max(target, len(sites) + best + drawn + sampling.min_random)
    if sampling.all_positions or length <= asked:
        return np.arange(length), np.ones(length, np.float32)
    if drawn == 0:
        pool = 0  # nothing would stand for it: it joins the rest
    negatives = np.flatnonzero(labels == 0)
    order = best_first(np.maximum(scores[:, DONOR], scores[:, ACCEPTOR])[negatives], best + pool)
    top, following = negatives[order[:best]], negatives[order[best:]]
    others = np.delete(negatives, order)
    rng = _generator(gene_id, seed)
    some = _drawn(rng, following, drawn)
    random = _drawn(rng, others, max(target - len(sites) - len(top) - len(some), sampling.min_random))
    tiers = ((sites, sites), (top, top), (some, following), (random, others))
    index = np.concatenate([rows for rows, _ in tiers])
    weight = np.concatenate([np.full(len(rows), len(of) / max(len(rows), 1), np.float32) for rows, of in tiers])
    ascending = np.argsort(index)
    return index[ascending], weight[ascending]


def best_first(peak: np.ndarray, wanted: int) -> np.ndarray:
    """Places of the `wanted` highest (fewer, where there are fewer), highest first, the first of equal ones first."""
    wanted = min(wanted, len(peak))
    if wanted == 0:
        return np.zeros(0, np.int64)
    lowest = np.partition(peak, len(peak) - wanted)[len(peak) - wanted]
    among = np.flatnonzero(peak >= lowest)
    return among[np.argsort(-peak[among], kind="stable")][:wanted]


def _drawn(rng: np.random.Generator, rows: np.ndarray, number: int) -> np.ndarray:
    return rows if len(rows) <= number else rng.choice(rows, number, replace=False)


def _generator(gene_id: str, seed: int) -> np.random.Generator:
    """Random numbers of a gene: the same in whatever batch or worker."""
    digest = hashlib.sha256(f"{seed}:{gene_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
