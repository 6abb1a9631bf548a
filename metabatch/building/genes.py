"""A gene: where it lies, and which of its positions are splice sites.

Within a gene, index i = 0 .. length - 1 runs in transcript direction: genomic position start + i on the + strand,
end - i on the - strand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

NEITHER, DONOR, ACCEPTOR = 0, 1, 2
# The order of columns in score arrays and of the labels' codes.
CLASSES = ("neither", "donor", "acceptor")
# Sites of all transcripts of a gene, or of its canonical one.
Sites = Literal["all", "canonical"]


@dataclass(frozen=True, eq=False)
class Gene:
    """One gene on one contig and strand.

    Attributes
    ----------
    gene_id, name, type : str
        Of the annotation; the name is the id where there is none, the type empty.
    chrom, strand : str
        Contig as the annotation calls it; ``+`` or ``-``.
    start, end : int
        Genomic span, 1-based, both ends in it.
    donors, acceptors : np.ndarray
        Indices in transcript direction, int64, ascending, without duplicates: last exon bases before an intron and
        first exon bases after one. No position is in both.
    skipped : np.ndarray
        Likewise, sites of transcripts that were left out: `neither` among the gene's rows.
    locus_id : str
        Of the overlapping genes this one belongs to (`with_loci`).
    """

    gene_id: str
    name: str
    type: str
    chrom: str
    strand: str
    start: int
    end: int
    donors: np.ndarray
    acceptors: np.ndarray
    locus_id: str = ""
    skipped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def length(self) -> int:
        """Positions of the gene, nt."""
        return self.end - self.start + 1

    def positions(self, index: np.ndarray) -> np.ndarray:
        """Genomic positions (1-based, int64) of indices in transcript direction."""
        index = np.asarray(index, dtype=np.int64)
        return self.start + index if self.strand == "+" else self.end - index

    def index(self, positions: np.ndarray) -> np.ndarray:
        """Indices in transcript direction (int64) of genomic positions; the inverse of `positions`."""
        positions = np.asarray(positions, dtype=np.int64)
        return positions - self.start if self.strand == "+" else self.end - positions

    def labels(self) -> np.ndarray:
        """uint8 of shape (length,): 0 neither, 1 donor, 2 acceptor."""
        labels = np.zeros(self.length, dtype=np.uint8)
        labels[self.donors] = DONOR
        labels[self.acceptors] = ACCEPTOR
        return labels


def with_loci(genes: Sequence[Gene]) -> list[Gene]:
    """The genes sorted by (chrom, start, end, gene_id), each with its locus.

    A locus is a connected component of genes whose spans overlap by a position or more, on whichever strands, named
    ``chrom:start-end`` by what it covers: genes of one locus share rows' sequence and must not be split apart.
    """
    ordered = sorted(genes, key=lambda gene: (gene.chrom, gene.start, gene.end, gene.gene_id))
    found: list[Gene] = []
    members: list[Gene] = []
    reach = 0
    for gene in ordered:
        if members and (gene.chrom != members[0].chrom or gene.start > reach):
            found += _of_one_locus(members, reach)
            members = []
        reach = max(reach, gene.end) if members else gene.end
        members.append(gene)
    return found + _of_one_locus(members, reach)


def _of_one_locus(members: list[Gene], end: int) -> list[Gene]:
    return [replace(gene, locus_id=f"{gene.chrom}:{members[0].start}-{end}") for gene in members]
