"""Which genes a data set has, and which of them a base model that is fitted here does not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from metabatch.building.genes import ACCEPTOR, DONOR, Gene
from metabatch.building.request import HOLDOUT_FRACTION, BuildRequest
from metabatch.building.rows import best_first
from metabatch.data.partition import partition, seeded_rank
from metabatch.errors import InputError


def wanted_genes(genes: Sequence[Gene], request: BuildRequest) -> list[Gene]:
    """Those of the types and ids asked for.

    Raises
    ------
    InputError
        A type or id that the annotation does not have.
    """
    for asked, have, option in (
        (request.gene_types, {g.type for g in genes}, "--gene-types"),
        (request.gene_ids, {g.gene_id for g in genes}, "--gene-ids"),
    ):
        unknown = [name for name in asked if name not in have]
        if unknown:
            shown = ", ".join(sorted(have - {""})[:10])
            raise InputError(
                f"{option} {', '.join(unknown[:5])}: {len(unknown)} of {len(asked)} not in the annotation",
                expected=f"{shown}{', …' if len(have) > 10 else ''}" if shown else "an annotation that names them",
            )
    types, ids = set(request.gene_types), set(request.gene_ids)
    found = [g for g in genes if (not types or g.type in types) and (not ids or g.gene_id in ids)]
    if not found:
        raise InputError("no gene is left by --gene-types and --gene-ids together")
    return found


def held_out(genes: Sequence[Gene], request: BuildRequest) -> tuple[set[str], str]:
    """Ids of the genes that a base model is not fitted on, in whole loci, and how they were drawn.

    Raises
    ------
    InputError
        No gene on one of the sides, or no such chromosome.
    """
    loci = sorted({g.locus_id for g in genes})
    if request.holdout_chrom:
        have = {g.chrom for g in genes}
        unknown = [c for c in request.holdout_chrom if c not in have]
        if unknown:
            raise InputError(
                f"--holdout-chrom {', '.join(unknown)}: no gene there", expected=", ".join(sorted(have)[:30])
            )
        out = {g.locus_id for g in genes if g.chrom in request.holdout_chrom}
        how = f"genes on {', '.join(request.holdout_chrom)}"
    else:
        fraction = HOLDOUT_FRACTION if request.holdout_fraction is None else request.holdout_fraction
        number = {locus: i for i, locus in enumerate(loci)}
        sizes = np.zeros((len(loci), 4))
        for g in genes:
            sizes[number[g.locus_id]] += (1, g.length, len(g.donors), len(g.acceptors))
        sizes /= np.maximum(sizes.sum(axis=0), 1)
        bins = partition(sizes, [fraction, 1 - fraction], seeded_rank(loci, request.seed))
        out = {locus for locus, place in zip(loci, bins, strict=True) if place == 0}
        how = f"{fraction:.0%} of the genes in whole loci, stratified by length and sites, seed {request.seed}"
    held = {g.gene_id for g in genes if g.locus_id in out}
    if len(held) in (0, len(genes)):
        raise InputError(
            f"the holdout would have {len(held)} of {len(genes)} genes",
            expected="at least one gene on either side",
            next_step="another --holdout-fraction or --holdout-chrom, or more genes",
        )
    return held, how


def missed_sites(gene: Gene, scores: np.ndarray) -> int:
    """Errors of a base model in a gene: sites that are not among its as many best-scored positions of their class.

    By rank, since base models score on scales of their own: position weights hardly ever say 0.5. As many other
    positions stand before the sites as are missed, so the false ones are not counted again.

    Parameters
    ----------
    scores : float32, shape (length, 3)
    """
    return sum(
        len(np.setdiff1d(sites, best_first(scores[:, column], len(sites))))
        for column, sites in ((DONOR, gene.donors), (ACCEPTOR, gene.acceptors))
    )


def subset(genes: Sequence[Gene], request: BuildRequest, errors: Callable[[], Sequence[int]]) -> list[Gene]:
    """`--n-genes` of the genes, in their order.

    Parameters
    ----------
    errors : callable
        Number of errors of the base model in each gene (`missed_sites`); asked for by the policy `errors` only.
    """
    if request.n_genes is None:
        return list(genes)
    if request.n_genes > len(genes):
        raise InputError(f"--n-genes {request.n_genes}, but there are {len(genes)} genes")
    rank = seeded_rank([g.gene_id for g in genes], request.seed)
    order = np.lexsort((rank, -np.asarray(errors()))) if request.subset_policy == "errors" else np.argsort(rank)
    return [genes[i] for i in sorted(order[: request.n_genes])]
