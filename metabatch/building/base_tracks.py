"""Base scores that somebody made before, in bigWig tracks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metabatch.building.base import BaseDescription, Source, not_installed, source_of
from metabatch.building.base_scores import check_scores, remainder
from metabatch.building.genes import ACCEPTOR, DONOR, NEITHER, Gene
from metabatch.errors import InputError, UsageError

# What tracks hold, in the order they are given.
UNSTRANDED = ("donor", "acceptor")
STRANDED = ("donor.plus", "donor.minus", "acceptor.plus", "acceptor.minus")
# Words that cannot both be true of a track.
_OPPOSITE = {"donor": "acceptor", "acceptor": "donor", "plus": "minus", "minus": "plus"}


class ScoreTracks:
    """Scores in bigWig files; neither is what they leave of 1. Needs pybigtools (extra ``bigwig``).

    Parameters
    ----------
    paths : Path
        Two: donors and acceptors, the same values on both strands. Four: as `STRANDED`, a strand's own each.
    known : sequence of Source
        `source_of` every file, where that is known.

    Attributes
    ----------
    stranded : bool
        Whether a gene's scores are those of its strand.

    Raises
    ------
    InputError
        A file that is no bigWig.
    UsageError
        Another number of files, or one whose name says that it is another track.
    """

    flank = 0

    def __init__(self, *paths: Path, known: Sequence[Source] = ()) -> None:
        try:
            import pybigtools
        except ImportError as error:
            raise not_installed("bigWig", "bigwig", error) from None
        self.paths, self._known = tuple(Path(p) for p in paths), tuple(known)
        if len(self.paths) not in (len(UNSTRANDED), len(STRANDED)):
            raise UsageError(f"{len(paths)} tracks", expected=f"{', '.join(UNSTRANDED)}; or {', '.join(STRANDED)}")
        self.stranded = len(self.paths) == len(STRANDED)
        self.name = ", ".join(p.name for p in self.paths)
        self._tracks: dict[str, tuple[Path, Any]] = {}
        for what, path in zip(STRANDED if self.stranded else UNSTRANDED, self.paths, strict=True):
            _refuse_other_name(what, path)
            if not path.is_file():
                raise InputError(f"{path} does not exist", expected="a bigWig file of scores")
            try:
                self._tracks[what] = path, pybigtools.open(str(path))
            except (pybigtools.BBIReadError, OSError, ValueError) as error:
                raise InputError(f"{path.name} cannot be read as bigWig: {error}", where=str(path)) from None

    def __reduce__(self) -> tuple[partial[ScoreTracks], tuple[Path, ...]]:
        return partial(ScoreTracks, known=self._known), self.paths

    def describe(self) -> BaseDescription:
        """With the sha256 of every file."""
        return BaseDescription(kind="bigwig", sources=self._known or tuple(map(source_of, self.paths)))

    def lacking(self, genes: Iterable[Gene]) -> list[str]:
        """Ids of the genes on contigs that one of their tracks does not have."""
        has = {what: set(track.chroms()) for what, (_, track) in self._tracks.items()}
        return [g.gene_id for g in genes if any(g.chrom not in has[self._track_of(what, g)] for what in UNSTRANDED)]

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:  # noqa: ARG002 (scores do not come from sequence)
        """As `BaseModel.scores`."""
        found = np.empty((gene.length, 3), dtype=np.float32)
        for column, what in ((DONOR, "donor"), (ACCEPTOR, "acceptor")):
            path, track = self._tracks[self._track_of(what, gene)]
            values = self._values(track, gene)
            bare = np.isnan(values)
            if bare.any():
                first = gene.positions(np.flatnonzero(bare)[0])
                raise InputError(
                    f"{int(bare.sum())} of the {gene.length} positions of gene {gene.gene_id} have no score, the first "
                    f"at {gene.chrom}:{first}",
                    expected="a value at every position of the genes, 0 too",
                    where=str(path),
                    next_step="write the track with its zeros, for this genome",
                )
            found[:, column] = values
        found[:, NEITHER] = remainder(found)
        check_scores(found, gene=gene, where=self.name)
        return found

    def _track_of(self, what: str, gene: Gene) -> str:
        return f"{what}.{'plus' if gene.strand == '+' else 'minus'}" if self.stranded else what

    @staticmethod
    def _values(track: Any, gene: Gene) -> np.ndarray:
        """In transcript direction; NaN where the track has nothing."""
        if gene.chrom not in track.chroms():
            return np.full(gene.length, np.nan)
        values = np.asarray(track.values(gene.chrom, gene.start - 1, gene.end, fillna=None))
        return values if gene.strand == "+" else values[::-1]


def _refuse_other_name(what: str, path: Path) -> None:
    """Files in another order would be nonsense that nobody sees."""
    said, words = set(what.split(".")), set(re.split(r"[^a-z]+", path.name.lower()))
    if said & {_OPPOSITE[word] for word in words & _OPPOSITE.keys()} - words:
        raise UsageError(
            f"{path.name} is given as the track {what}",
            expected=f"the order {', '.join(UNSTRANDED)}; or {', '.join(STRANDED)}",
            next_step="give the files in this order, or rename the file",
        )
