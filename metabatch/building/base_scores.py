"""Base scores, whatever base model they come from: the one rule of what a score may be.

Values are taken as they are: one that rounding or recalibration left a little above 1 is neither refused nor changed.
"""

from __future__ import annotations

import numpy as np

from metabatch.building.genes import ACCEPTOR, CLASSES, DONOR, Gene
from metabatch.errors import InputError

# Rounded and recalibrated probabilities may exceed 1 by this much.
SLACK = 1e-3


def check_scores(scores: np.ndarray, *, gene: Gene | None = None, where: str | None = None) -> None:
    """Refuse scores that are no probabilities: every feature and the choice of rows would be nonsense.

    Parameters
    ----------
    scores : np.ndarray
        Shape (n, 3): neither, donor, acceptor; of all positions of `gene` in transcript direction, where it is given.
    gene : Gene, optional
        For the message, which then names the first position.

    Raises
    ------
    InputError
        A value that is missing, below 0, or above 1 by more than `SLACK`.
    """
    if not scores.size or (scores.min() >= 0 and scores.max() <= 1 + SLACK):  # a NaN fails both
        return
    bad = ~((scores >= 0) & (scores <= 1 + SLACK))
    row, column = np.argwhere(bad)[0]
    of = f" of gene {gene.gene_id}" if gene is not None else ""
    place = f", the first at {gene.chrom}:{gene.positions(row)}" if gene is not None else ", e.g."
    raise InputError(
        f"{int(bad.any(axis=1).sum()):,} position(s){of} have a score that is no probability{place}: "
        f"{CLASSES[column]} {scores[row, column]!s}",
        expected="0 to 1 at every position, none missing",
        where=where,
        next_step="give the base model's probabilities (not logits), one row for every position of every gene",
    )


def remainder(scores: np.ndarray) -> np.ndarray:
    """The score of neither, where only those of donor and acceptor are known: 1 less both, but not below 0."""
    return np.maximum(np.float32(1) - scores[:, DONOR] - scores[:, ACCEPTOR], np.float32(0))
