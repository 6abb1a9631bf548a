"""Base scores from tables and tracks against the genes to be scored: what is wrong is said before any work.

Networks and position weights are made from the sequence itself: nothing is looked at then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from metabatch.building.base import BaseModel
from metabatch.building.base_tables import ScoreTable
from metabatch.building.base_tracks import ScoreTracks
from metabatch.building.genes import ACCEPTOR, DONOR, Gene
from metabatch.errors import InputError

_SHOWN = 10
# Sites compared with their neighbours: fewer do not tell; more, or more genes, are not needed.
_FEWEST_SITES, _SITES, _GENES = 50, 200, 40
# Positions are shifted when a neighbour scores so many times as much on average, and is higher at this part of the
# sites: of scores that say nothing half of them would be.
_TIMES, _SHARE = 2, 0.75
_NO_CODES = np.zeros(0, np.uint8)


def check_source(base: BaseModel, genes: Sequence[Gene], stop: Callable[[], None] = lambda: None) -> list[str]:
    """Refuse a source that cannot be of these genes; what else is to be said of it.

    Parameters
    ----------
    genes : sequence of Gene
        All that will be scored, by (chrom, start, end).
    stop : callable
        Called between genes, and may raise.

    Raises
    ------
    InputError
        Genes that it lacks, or positions that do not count from 1.
    """
    if not isinstance(base, ScoreTable | ScoreTracks):
        return []
    _refuse_lacking(base, genes)
    _refuse_shifted(base, genes, stop)
    return [] if base.stranded else _without_strands(base, genes)


def _refuse_lacking(base: ScoreTable | ScoreTracks, genes: Sequence[Gene]) -> None:
    missing = base.lacking(genes)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"the base scores have nothing of {len(missing):,} of the {len(genes):,} genes: {shown}",
            expected="scores of every gene",
            where=base.name,
            next_step="give scores of them too, or take the others alone (--gene-ids)",
        )


def _without_strands(base: BaseModel, genes: Sequence[Gene]) -> list[str]:
    """Where a + and a - gene are given the same values at the same place."""
    of_strand = {strand: sum(g.strand == strand for g in genes) for strand in "+-"}
    if not all(of_strand.values()):
        return []
    return [
        f"the base scores ({base.name}) do not tell the strands apart: {of_strand['+']:,} gene(s) on + and "
        f"{of_strand['-']:,} on - have the same values at the same position, and {_over_the_other(genes):,} of them "
        "overlap a gene of the other strand; give a table with strands, or four tracks "
        "(donor.plus, donor.minus, acceptor.plus, acceptor.minus)"
    ]


def _over_the_other(genes: Sequence[Gene]) -> int:
    """Genes that share a position with one on the other strand."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for gene in genes:
        spans.setdefault((gene.chrom, gene.strand), []).append((gene.start, gene.end))
    # Of the genes that begin up to a place, the furthest end.
    reach = {
        place: (np.array([start for start, _ in own]), np.maximum.accumulate([end for _, end in own]))
        for place, own in ((place, sorted(several)) for place, several in spans.items())
    }
    found = 0
    for gene in genes:
        other = reach.get((gene.chrom, "-" if gene.strand == "+" else "+"))
        if other is not None:
            begun = int(np.searchsorted(other[0], gene.end, "right"))
            found += begun > 0 and bool(other[1][begun - 1] >= gene.start)
    return found


def _refuse_shifted(base: BaseModel, genes: Sequence[Gene], stop: Callable[[], None]) -> None:
    """Positions counted from 0 (or otherwise) have the sites' scores one position away, whatever the base model."""
    looked = [triples for gene in _some(genes) for triples in _around(base, gene, stop)]
    if len(looked) < _FEWEST_SITES:
        return
    scores = np.array(looked)
    before, site, after = scores.mean(axis=0)
    for where, mean, column in (("before", before, 0), ("after", after, 2)):
        higher = float((scores[:, column] > scores[:, 1]).mean())
        if mean > _TIMES * site and higher >= _SHARE:
            raise InputError(
                f"the base scores seem to be a position off: their mean is {site:.3g} at {len(scores)} splice sites "
                f"and {mean:.3g} one position {where} them on the genome (higher at {higher:.0%})",
                expected="positions that count from 1; donors: the last base of an exon, acceptors: the first",
                where=base.name,
                next_step="add 1 to positions that count from 0 (or shift the scores to these bases)",
            )


def _some(genes: Sequence[Gene]) -> Iterator[Gene]:
    """Genes with sites, evenly over all, until there are enough."""
    having = [g for g in genes if len(g.donors) + len(g.acceptors)]
    sites = 0
    for gene in having[:: max(1, len(having) // _GENES)]:
        yield gene
        sites += len(gene.donors) + len(gene.acceptors)
        if sites >= _SITES:
            return


def _around(base: BaseModel, gene: Gene, stop: Callable[[], None]) -> list[tuple[float, float, float]]:
    """Scores of a gene's sites in their own class: one position before on the genome, at the site, one after."""
    stop()
    scores = base.scores(gene, _NO_CODES)
    found = []
    for column, index in ((DONOR, gene.donors), (ACCEPTOR, gene.acceptors)):
        inner = index[(index > 0) & (index < gene.length - 1)]
        triples = np.stack([scores[inner + step, column] for step in (-1, 0, 1)], axis=1)
        found += [tuple(row) for row in (triples if gene.strand == "+" else triples[:, ::-1]).tolist()]
    return found
