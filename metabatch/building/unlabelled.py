"""Splice sites that stand as `neither` in the rows of a gene, because they are those of another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metabatch.building.genes import Gene


def unlabelled_sites(genes: Sequence[Gene], annotated: Sequence[Gene]) -> list[str]:
    """What is to be said of the positions of `genes` that are a site on their strand, and not one of the gene's own.

    Sites of other genes, or of the gene's own transcripts that were left out (`--sites canonical`): real sites with
    high scores, and so among the hardest negatives.

    Parameters
    ----------
    annotated : sequence of Gene
        All of the annotation, `genes` among them.
    """
    of_strand: dict[tuple[str, str], list[np.ndarray]] = {}
    for gene in annotated:
        sites = np.concatenate([gene.donors, gene.acceptors, gene.skipped])
        of_strand.setdefault((gene.chrom, gene.strand), []).append(gene.positions(sites))
    sites_of = {place: np.unique(np.concatenate(several)) for place, several in of_strand.items()}
    positions = having = 0
    for gene in genes:
        sites = sites_of[gene.chrom, gene.strand]
        inside = int(np.searchsorted(sites, gene.end, "right") - np.searchsorted(sites, gene.start))
        others = inside - len(gene.donors) - len(gene.acceptors)
        positions += others
        having += others > 0
    if not positions:
        return []
    left_out = " or of a transcript left out" if any(len(g.skipped) for g in genes) else ""
    return [
        f"{positions:,} position(s) in {having:,} of {len(genes):,} gene(s) are a splice site of another gene on the "
        f"same strand{left_out}, and `neither` in the gene's rows: well-scored negatives that are sites"
    ]
