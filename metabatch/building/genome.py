"""The sequence of a genome through an index, on the transcript strand of a gene.

Nucleotide codes: A 0, C 1, G 2, T 3, anything else (N, beyond the contig's ends) 4, in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from metabatch.building.copies import copy_stem
from metabatch.building.fasta import indexed, unpacked
from metabatch.building.genes import Gene
from metabatch.errors import InputError

UNKNOWN = 4
_CODE = np.full(256, UNKNOWN, dtype=np.uint8)
for _code, _letters in enumerate(("Aa", "Cc", "Gg", "Tt")):
    _CODE[list(_letters.encode())] = _code
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], dtype=np.uint8)
# Of sites of real genes 98 % and more have the consensus, of positions drawn at random 6 %.
_LEAST_CONSENSUS = 0.5
_SITES_LOOKED_AT = 500
# Contigs with fewer are judged together: few sites of one may be odd in the right build too.
_SITES_THAT_TELL = 20
# Positions are columns of int32.
_LAST_POSITION = 2**31 - 1


class Genome:
    """A FASTA file, read by contig and position.

    Picklable: a worker opens the files again. The index, and a gzip file's unpacked copy, lie in `scratch` and are
    made once; nothing is written beside the FASTA.

    Parameters
    ----------
    path : Path
        FASTA, plain or gzip. Neither gzip nor bgzip is read in place: both are unpacked into `scratch`.
    scratch : Path
        An existing folder.
    stop : callable
        Called now and then while the file is unpacked and indexed; may raise, and nothing is left half made.

    Attributes
    ----------
    contigs : dict of str to int
        Length (nt) of each contig, in the file's order.

    Raises
    ------
    InputError
        No FASTA, a damaged one, or a contig twice.
    BudgetError
        Too little space in `scratch` to unpack it.
    """

    def __init__(self, path: Path, scratch: Path, stop: Callable[[], None] = lambda: None) -> None:
        self.path, self.scratch = Path(path), Path(scratch)
        if not self.path.is_file():
            raise InputError(f"genome {path} does not exist", expected="a FASTA file, plain or gzip")
        stem = copy_stem(self.path)
        fasta = unpacked(self.path, self.scratch / f"{stem}.fa", stop)
        self._fasta = indexed(fasta, self.scratch / f"{stem}.fai", path, stop)
        self.contigs = {name: int(record.rlen) for name, record in self._fasta.index.items()}

    def __reduce__(self) -> tuple[type[Genome], tuple[Path, Path]]:
        return Genome, (self.path, self.scratch)

    def codes(self, gene: Gene, flank: int) -> np.ndarray:
        """Nucleotides of a gene and `flank` nt on both sides on the transcript strand, uint8 (length + 2 * flank,)."""
        return self._codes(gene.chrom, gene.start - flank, gene.end + flank, gene.strand)

    def _codes(self, chrom: str, start: int, end: int, strand: str) -> np.ndarray:
        codes = np.full(end - start + 1, UNKNOWN, dtype=np.uint8)
        first, last = max(start, 1), min(end, self.contigs[chrom])
        if first <= last:
            letters = self._fasta.fetch(chrom, first, last).encode("ascii", "replace")
            codes[first - start : last - start + 1] = _CODE[np.frombuffer(letters, dtype=np.uint8)]
        return codes if strand == "+" else _COMPLEMENT[codes[::-1]]

    def check(self, genes: Sequence[Gene], where: str) -> list[str]:
        """Compare the annotation with the genome it is said to be of; what is to be said where it is odd.

        Parameters
        ----------
        where : str
            The annotation, for the message.

        Raises
        ------
        InputError
            A contig the genome lacks, a gene beyond its contig's end or beyond 2,147,483,647 nt, or a contig whose
            donors mostly have no GT after them and whose acceptors mostly no AG before them, as those of another build.
            Where only one of the two is rare (group II introns of organelles may end otherwise) it is told. Contigs of
            fewer than 20 sites count as one.
        """
        self._check_contigs(genes, where)
        beyond = [gene for gene in genes if gene.end > self.contigs[gene.chrom]]
        if beyond:
            gene = beyond[0]
            raise InputError(
                f"{len(beyond)} gene(s) end beyond their contig, the first "
                f"{gene.gene_id} at {gene.chrom}:{gene.start}-{gene.end}",
                expected=f"at most {self.contigs[gene.chrom]}, the length of {gene.chrom} in {self.path.name}",
                where=where,
                next_step="take the genome and the annotation of the same build",
            )
        far = [gene for gene in genes if gene.end > _LAST_POSITION]
        if far:
            gene = far[0]
            raise InputError(
                f"{len(far)} gene(s) end beyond position {_LAST_POSITION:,} of their contig, the first "
                f"{gene.gene_id} at {gene.chrom}:{gene.start}-{gene.end}",
                expected=f"positions up to {_LAST_POSITION:,}: they are written as 32-bit numbers",
                where=where,
                next_step="cut the contig in two, in genome and annotation, or leave these genes out",
            )
        return self._check_consensus(genes, where)

    def _check_contigs(self, genes: Sequence[Gene], where: str) -> None:
        missing: dict[str, int] = {}
        for gene in genes:
            if gene.chrom not in self.contigs:
                missing[gene.chrom] = missing.get(gene.chrom, 0) + 1
        if not missing:
            return
        name = next(iter(missing))
        other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
        renamed = f"the genome calls {name} {other}: give both the same names" if other in self.contigs else None
        raise InputError(
            f"{sum(missing.values())} gene(s) lie on {len(missing)} contig(s) that the genome does not have: "
            + _some(missing),
            expected=f"the contigs of {self.path.name}: {_some(self.contigs)}",
            where=where,
            next_step=renamed or "take a genome with these contigs, or only genes on contigs it has",
        )

    def _check_consensus(self, genes: Sequence[Gene], where: str) -> list[str]:
        of_contig: dict[str, list[Gene]] = {}
        for gene in genes:
            of_contig.setdefault(gene.chrom, []).append(gene)
        small = [chrom for chrom, own in of_contig.items() if _sites(own) < _SITES_THAT_TELL]
        together = [gene for chrom in small for gene in of_contig.pop(chrom)]
        if together:
            of_contig[f"{len(small)} contig(s) of few sites ({_some(small)})"] = together
        return [text for place, own in of_contig.items() for text in self._check_sites(own, place, where)]

    def _check_sites(self, genes: Sequence[Gene], place: str, where: str) -> list[str]:
        found, seen = {True: 0, False: 0}, {True: 0, False: 0}  # by whether a donor
        for gene, position, donor in _spread(genes):
            # Two intron bases: after a donor, before an acceptor.
            first = position + 1 if donor == (gene.strand == "+") else position - 2
            pair = self._codes(gene.chrom, first, first + 1, gene.strand).tolist()
            found[donor] += pair == ([2, 3] if donor else [0, 2])
            seen[donor] += 1
        few = [kind for kind in seen if found[kind] < _LEAST_CONSENSUS * seen[kind]]
        if sum(seen.values()) < _SITES_THAT_TELL or not few:
            return []
        if len(few) == sum(n > 0 for n in seen.values()):
            raise InputError(
                f"only {sum(found.values())} of {sum(seen.values())} splice sites looked at on {place} have GT "
                "(donor) or AG (acceptor)",
                expected="nearly all of them, as in every genome its annotation was made for",
                where=f"{where} on {self.path}",
                next_step="take the genome and the annotation of the same build",
            )
        name, pair_name = ("donors", "GT") if few[0] else ("acceptors", "AG")
        return [
            f"only {found[few[0]]} of {seen[few[0]]} {name} looked at on {place} have {pair_name}, but most of the "
            "other sites have theirs: unusual introns (of organelles, say), or wrong exon ends"
        ]


def _sites(genes: Sequence[Gene]) -> int:
    return sum(gene.donors.size + gene.acceptors.size for gene in genes)


def _spread(genes: Sequence[Gene]) -> Iterator[tuple[Gene, int, bool]]:
    """Gene, genomic position and whether a donor, of some sites, evenly over all of them."""
    step = max(1, _sites(genes) // _SITES_LOOKED_AT)
    passed = 0
    for gene in genes:
        sites = np.concatenate([gene.donors, gene.acceptors])
        for number in range(-passed % step, sites.size, step):
            yield gene, int(gene.positions(sites[number])), number < gene.donors.size
        passed += sites.size


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:5]) + (", …" if len(names) > 5 else "")
