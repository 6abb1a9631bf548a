"""Base scores that somebody made before, in bigWig tracks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metabatch.building.base import BaseDescription, Source, not_installed, source_of
from metabatch.building.base_scores import check_scores, remainder
from metabatch.building.genes import ACCEPTOR, DONOR, NEITHER, Gene
from metabatch.errors import InputError


class ScoreTracks:
    """Scores in a bigWig file each for donors and acceptors; neither is what they leave of 1.

    Needs pybigtools (extra ``bigwig``).
    """

    flank = 0

    def __init__(self, donor: Path, acceptor: Path, known: Sequence[Source] = ()) -> None:
        try:
            import pybigtools
        except ImportError as error:
            raise not_installed("bigWig", "bigwig", error) from None
        self.donor, self.acceptor, self._known = Path(donor), Path(acceptor), tuple(known)
        self.name = f"{self.donor.name}, {self.acceptor.name}"
        self._tracks = []
        for path in (self.donor, self.acceptor):
            if not path.is_file():
                raise InputError(f"{path} does not exist", expected="a bigWig file of scores")
            try:
                self._tracks.append(pybigtools.open(str(path)))
            except (pybigtools.BBIReadError, OSError, ValueError) as error:
                raise InputError(f"{path.name} cannot be read as bigWig: {error}", where=str(path)) from None

    def __reduce__(self) -> tuple[type[ScoreTracks], tuple[Path, Path, tuple[Source, ...]]]:
        return ScoreTracks, (self.donor, self.acceptor, self._known)

    def describe(self) -> BaseDescription:
        """With the sha256 of both files."""
        return BaseDescription(kind="bigwig", sources=self._known or (source_of(self.donor), source_of(self.acceptor)))

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:  # noqa: ARG002 (scores do not come from sequence)
        """As `BaseModel.scores`."""
        found = np.empty((gene.length, 3), dtype=np.float32)
        for column, path, track in ((DONOR, self.donor, self._tracks[0]), (ACCEPTOR, self.acceptor, self._tracks[1])):
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

    @staticmethod
    def _values(track: Any, gene: Gene) -> np.ndarray:
        """In transcript direction; NaN where the track has nothing."""
        if gene.chrom not in track.chroms():
            return np.full(gene.length, np.nan)
        values = np.asarray(track.values(gene.chrom, gene.start - 1, gene.end, fillna=None))
        return values if gene.strand == "+" else values[::-1]
