"""A base model: scores of neither, donor and acceptor for every position of a gene.

What `build-dataset` used is described by a `BaseDescription`, from which `open_base` makes the same base model again.

To add one: write a class with the members of `BaseModel`, give it a kind here (`BaseDescription.kind` and what it needs
to be opened again) and open it in `open_base`. It has to give the same float32 values for a gene whenever it is asked:
features of training and of prediction are made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from metabatch.building.genes import Gene
from metabatch.errors import InputError, UsageError
from metabatch.rundir.publish import sha256_file

type Kind = Literal["table", "bigwig", "pwm", "openspliceai", "spliceai"]
# A row a position of the window, a column a nucleotide: A, C, G, T.
type Matrix = tuple[tuple[float, float, float, float], ...]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file the scores come from: its name without the folder, size and sha256."""

    name: str
    bytes: int
    sha256: str


class ScoreColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns of a table of scores.

    A table with the column `gene` is looked up by gene and position, one without by chrom and position, and by strand
    where it has that column. Without `neither` that score is 1 - donor - acceptor.
    """

    donor: str = "donor_score"
    acceptor: str = "acceptor_score"
    neither: str | None = "neither_score"
    gene: str = "gene_id"
    position: str = "position"
    chrom: str = "chrom"
    strand: str = "strand"


class PositionWeights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fitted position-weight model: log-odds (natural) against the background, and what they were counted on."""

    donor: Matrix
    acceptor: Matrix
    donor_log_prior: float
    acceptor_log_prior: float
    background: tuple[float, float, float, float]
    pseudocount: float
    genes: int
    positions: int
    donors: int
    acceptors: int


class BaseDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the scores of a base model.

    sources : tables, tracks or weights, in the order `open_base` takes them. columns : of a table. weights : of a
    position-weight model, all of it. versions : of the packages that ran a network.
    """

    kind: Kind
    sources: tuple[Source, ...] = ()
    columns: ScoreColumns | None = None
    weights: PositionWeights | None = None
    versions: dict[str, str] = {}


class BaseModel(Protocol):
    """Scores the positions of genes; picklable, so that workers have it too.

    name : for messages. flank : nt of sequence it wants on both sides of the gene.
    """

    @property
    def name(self) -> str: ...

    @property
    def flank(self) -> int: ...

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:
        """Probabilities, float32 of shape (length, 3): neither, donor, acceptor, in transcript direction.

        Parameters
        ----------
        codes : np.ndarray
            Nucleotides on the transcript strand (`Genome.codes`), uint8 of shape (length + 2 * flank,).

        Raises
        ------
        InputError
            A position without a score.
        """
        ...

    def describe(self) -> BaseDescription:
        """Enough to make the same base model again."""
        ...


def open_base(description: BaseDescription, sources: Sequence[Path] = (), *, scratch: Path) -> BaseModel:
    """The base model that was described.

    Parameters
    ----------
    sources : sequence of Path
        A table, or the tracks of donor and acceptor: of the genes to score, so not always the files described.
        The weights of openspliceai: the very ones described. Nothing for pwm and spliceai.
    scratch : Path
        Folder for the table that a TSV file is turned into.

    Raises
    ------
    InputError
        Other weights than described, or unreadable sources.
    UsageError
        The wrong number of sources, or an optional package is not installed.
    """
    wanted = {"table": 1, "bigwig": 2, "openspliceai": 1}.get(description.kind, 0)
    if len(sources) != wanted:
        raise UsageError(
            f"the base model {description.kind} was given {len(sources)} file(s)",
            expected=f"{wanted}, as {', '.join(s.name for s in description.sources)}" if wanted else "none",
        )
    base: BaseModel
    if description.kind == "table":
        from metabatch.building.base_tables import ScoreTable

        return ScoreTable(sources[0], description.columns or ScoreColumns(), scratch)
    if description.kind == "bigwig":
        from metabatch.building.base_tracks import ScoreTracks

        return ScoreTracks(sources[0], sources[1])
    if description.kind == "pwm":
        from metabatch.building.pwm import PositionWeightModel

        if description.weights is None:
            raise InputError("the description of the position-weight model has no weights", expected="its weights")
        return PositionWeightModel(description.weights)
    if description.kind == "openspliceai":
        from metabatch.building.base_networks import OpenSpliceAI

        base = OpenSpliceAI(sources[0])
    else:
        from metabatch.building.base_networks import SpliceAI

        base = SpliceAI()
    _refuse_other_weights(description, base.describe())
    return base


def _refuse_other_weights(described: BaseDescription, found: BaseDescription) -> None:
    for was, here in zip(described.sources, found.sources, strict=True):
        if was.sha256 != here.sha256:
            raise InputError(
                f"{here.name} is not the weights that the features were made with (sha256 {here.sha256[:12]}…)",
                expected=f"{was.name} with sha256 {was.sha256[:12]}…",
                next_step="give the same weights: scores of others would be other features",
            )


def source_of(path: Path) -> Source:
    return Source(path.name, path.stat().st_size, sha256_file(path))


def not_installed(what: str, extra: str, error: ImportError) -> UsageError:
    return UsageError(
        f"{what} needs a package that is not installed: {error}",
        expected=f"the optional packages of the extra {extra}",
        next_step=f"pip install 'metabatch[{extra}]'",
    )


def versions_of(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}
