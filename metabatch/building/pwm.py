"""The built-in base model: position weights of the donor and acceptor sites of the training genes.

Log-odds of the nucleotides around an exon's end against the background of the genes (Staden 1984, Nucleic Acids Res.
12:505), in the windows of MaxEntScan (Yeo and Burge 2004, J. Comput. Biol. 11:377). Weak beside a network, but it
needs nothing else, and the features with reach make something of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from metabatch.building.base import BaseDescription, Matrix, PositionWeights
from metabatch.building.genes import Gene
from metabatch.building.genome import UNKNOWN, Genome
from metabatch.errors import InputError

# Offsets to the site, in transcript direction: -3..-1 | +1..+6 around the end of an exon, whose last base is the donor,
# and -20..-1 | +1..+3 around the beginning of one, whose first base is the acceptor.
DONOR_WINDOW = range(-2, 7)
ACCEPTOR_WINDOW = range(-20, 3)
FLANK = 20
FEWEST_SITES = 30
# Positions scored at once: bounds the memory of long genes.
_PIECE = 2**18


class PositionWeightModel:
    """Base model of fitted weights; see `fit_pwm`."""

    name = "pwm"
    flank = FLANK

    def __init__(self, weights: PositionWeights) -> None:
        self.weights = weights
        # An unknown nucleotide says nothing: log-odds 0.
        self._donor, self._acceptor = (
            np.hstack([np.array(matrix), np.zeros((len(matrix), 1))]) for matrix in (weights.donor, weights.acceptor)
        )

    def describe(self) -> BaseDescription:
        """All of the model."""
        return BaseDescription(kind="pwm", weights=self.weights)

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:
        """Softmax of (0, log-odds + log prior of a donor, of an acceptor), float32 (length, 3)."""
        found = np.empty((gene.length, 3), dtype=np.float32)
        for start in range(0, gene.length, _PIECE):
            stop = min(start + _PIECE, gene.length)
            donor = _log_odds(self._donor, DONOR_WINDOW, codes, start, stop) + self.weights.donor_log_prior
            acceptor = _log_odds(self._acceptor, ACCEPTOR_WINDOW, codes, start, stop) + self.weights.acceptor_log_prior
            highest = np.maximum(np.maximum(donor, acceptor), 0)
            parts = [np.exp(odds - highest) for odds in (np.zeros_like(donor), donor, acceptor)]
            total = parts[0] + parts[1] + parts[2]
            for column, part in enumerate(parts):
                found[start:stop, column] = part / total
        return found


def _log_odds(matrix: np.ndarray, window: range, codes: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Of positions start .. stop - 1, float64; summed in one order, so that a value never depends on its neighbours."""
    odds = np.zeros(stop - start)
    for row, offset in zip(matrix, window, strict=True):
        first = FLANK + offset + start
        odds += row[codes[first : first + stop - start]]
    return odds


def fit_pwm(
    genes: Iterable[Gene], genome: Genome, *, pseudocount: float = 1.0, stop: Callable[[], None] = lambda: None
) -> PositionWeightModel:
    """Count the nucleotides at the sites of `genes`, one gene in memory at a time.

    Only counts are added up, so the order of the genes does not matter.

    Parameters
    ----------
    genes : iterable of Gene
        Training genes, and no others: a gene's own sites would score it.
    pseudocount : float
        Sites of background composition added to those of each class.
    stop : callable
        Called between genes, and may raise.

    Raises
    ------
    InputError
        Fewer than 30 donors or acceptors.
    """
    background = np.zeros(UNKNOWN + 1, dtype=np.int64)
    windows = {"donor": DONOR_WINDOW, "acceptor": ACCEPTOR_WINDOW}
    counts = {name: np.zeros((len(window), UNKNOWN + 1), dtype=np.int64) for name, window in windows.items()}
    sites = dict.fromkeys(windows, 0)
    number = positions = 0
    for gene in genes:
        stop()
        codes = genome.codes(gene, FLANK)
        background += np.bincount(codes[FLANK : FLANK + gene.length], minlength=UNKNOWN + 1)
        for name, index in (("donor", gene.donors), ("acceptor", gene.acceptors)):
            sites[name] += index.size
            for row, offset in enumerate(windows[name]):
                counts[name][row] += np.bincount(codes[FLANK + index + offset], minlength=UNKNOWN + 1)
        number += 1
        positions += gene.length
    for name, count in sites.items():
        if count < FEWEST_SITES:
            raise InputError(
                f"the {number} training gene(s) have {count} {name} site(s)",
                expected=f"at least {FEWEST_SITES}, to fit position weights on",
                next_step="take more genes, or scores of a base model",
            )
    composition = (background[:UNKNOWN] + 1) / (background[:UNKNOWN].sum() + UNKNOWN)
    others = positions - sites["donor"] - sites["acceptor"]
    matrices = {name: _weights(count, composition, pseudocount) for name, count in counts.items()}
    a, c, g, t = composition.tolist()
    return PositionWeightModel(
        PositionWeights(
            donor=matrices["donor"],
            acceptor=matrices["acceptor"],
            donor_log_prior=float(np.log(sites["donor"] / others)),
            acceptor_log_prior=float(np.log(sites["acceptor"] / others)),
            background=(a, c, g, t),
            pseudocount=pseudocount,
            genes=number,
            positions=positions,
            donors=sites["donor"],
            acceptors=sites["acceptor"],
        )
    )


def _weights(counts: np.ndarray, composition: np.ndarray, pseudocount: float) -> Matrix:
    known = counts[:, :UNKNOWN]
    frequency = (known + pseudocount * composition) / (known.sum(axis=1, keepdims=True) + pseudocount)
    return tuple((a, c, g, t) for a, c, g, t in np.log(frequency / composition).tolist())
