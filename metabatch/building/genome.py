"""The sequence of a genome through an index, on the transcript strand of a gene.

Nucleotide codes: A 0, C 1, G 2, T 3, anything else (N, beyond the contig's ends) 4, in either case.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pyfaidx import Faidx, FastaIndexingError, UnsupportedCompressionFormat

from metabatch.building.copies import complete_gzip, copy_stem, is_gzip, need_space
from metabatch.building.genes import Gene
from metabatch.errors import InputError
from metabatch.rundir.publish import replace_file

UNKNOWN = 4
_CODE = np.full(256, UNKNOWN, dtype=np.uint8)
for _code, _letters in enumerate(("Aa", "Cc", "Gg", "Tt")):
    _CODE[list(_letters.encode())] = _code
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], dtype=np.uint8)
_PIECE = 2**20
# Nucleotides take some 2 bits each under gzip, and 8 unpacked; soft-masked or repetitive sequence less.
_UNPACKED_RATIO = 5
# Of sites of real genes 98 % and more have the consensus, of positions drawn at random 6 %.
_LEAST_CONSENSUS = 0.5
_SITES_LOOKED_AT = 500
_SITES_THAT_TELL = 20


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

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path, self.scratch = Path(path), Path(scratch)
        if not self.path.is_file():
            raise InputError(f"genome {path} does not exist", expected="a FASTA file, plain or gzip")
        stem = copy_stem(self.path)
        self._fasta = _indexed(_unpacked(self.path, self.scratch / f"{stem}.fa"), self.scratch / f"{stem}.fai", path)
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

    def check(self, genes: Sequence[Gene], where: str) -> None:
        """Compare the annotation with the genome it is said to be of.

        Parameters
        ----------
        where : str
            The annotation, for the message.

        Raises
        ------
        InputError
            A contig the genome lacks, a gene beyond its contig's end, or sites of a contig (of 20 and more) that are
            mostly without the consensus (GT after a donor, AG before an acceptor), as those of another build are.
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
        self._check_consensus(genes, where)

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

    def _check_consensus(self, genes: Sequence[Gene], where: str) -> None:
        for chrom in dict.fromkeys(gene.chrom for gene in genes):
            found = seen = 0
            for strand, position, donor in _spread([gene for gene in genes if gene.chrom == chrom]):
                # Two intron bases: after a donor, before an acceptor.
                first = position + 1 if donor == (strand == "+") else position - 2
                found += self._codes(chrom, first, first + 1, strand).tolist() == ([2, 3] if donor else [0, 2])
                seen += 1
            if seen >= _SITES_THAT_TELL and found < _LEAST_CONSENSUS * seen:
                raise InputError(
                    f"only {found} of {seen} splice sites looked at on {chrom} have GT (donor) or AG (acceptor)",
                    expected="nearly all of them, as in every genome its annotation was made for",
                    where=f"{where} on {self.path}",
                    next_step="take the genome and the annotation of the same build",
                )


def _spread(genes: Sequence[Gene]) -> Iterator[tuple[str, int, bool]]:
    """Strand, genomic position and whether a donor, of some sites of one contig, evenly over all of them."""
    total = sum(gene.donors.size + gene.acceptors.size for gene in genes)
    step = max(1, total // _SITES_LOOKED_AT)
    passed = 0
    for gene in genes:
        sites = np.concatenate([gene.donors, gene.acceptors])
        for number in range(-passed % step, sites.size, step):
            yield gene.strand, int(gene.positions(sites[number])), number < gene.donors.size
        passed += sites.size


def _some(names: dict[str, int]) -> str:
    return ", ".join(list(names)[:5]) + (", …" if len(names) > 5 else "")


def _unpacked(path: Path, copy: Path) -> Path:
    """`path` itself, or of a gzip file the unpacked copy; made under another name, so never half there."""
    if not is_gzip(path):
        return path
    if not copy.is_file():
        need_space(copy.parent, _UNPACKED_RATIO * path.stat().st_size, f"unpacking {path.name}", "give plain FASTA")
        with complete_gzip(path), gzip.open(path, "rb") as packed:
            replace_file(copy, iter(lambda: packed.read(_PIECE), b""))
    return copy


def _indexed(fasta: Path, index: Path, path: Path) -> Faidx:
    """The FASTA with its index, which is made under another name: workers may open the genome at the same time."""
    try:
        if not index.is_file():
            with (
                tempfile.TemporaryDirectory(dir=index.parent) as folder,
                contextlib.closing(Faidx(str(fasta), indexname=str(Path(folder) / "fai"), as_raw=True)) as made,
            ):
                # pyfaidx takes an index older than its FASTA for stale.
                times = fasta.stat().st_mtime_ns
                os.utime(made.indexname, ns=(times, times))
                os.replace(made.indexname, index)
        return Faidx(str(fasta), indexname=str(index), as_raw=True, rebuild=False, build_index=False)
    except (FastaIndexingError, UnsupportedCompressionFormat, ImportError, ValueError) as error:
        raise InputError(
            f"{path.name} cannot be read as FASTA: {error}",
            expected="lines of sequence of one length under > lines with distinct names; plain or gzip",
            where=str(path),
        ) from None
