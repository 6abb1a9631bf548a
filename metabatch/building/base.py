"""A base model: scores of neither, donor and acceptor for every position of a gene.

What `build-dataset` used is described by a `BaseDescription`, from which `open_base` makes the same base model again.

To add one: write a class with the members of `BaseModel`, give it a kind here (`BaseDescription.kind` and what it needs
to be opened again) and open it in `open_base`. It has to give the same float32 values for a gene whenever it is asked:
features of training and of prediction are made from them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from metabatch.building.genes import Gene
from metabatch.errors import InputError, UsageError
from metabatch.rundir.publish import sha256_file

log = logging.getLogger(__name__)
# What runs the networks: their scores may depend on it.
_PACKAGES = {"openspliceai": ("openspliceai", "torch"), "spliceai": ("spliceai", "keras", "torch")}

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
    where it has that column. neither : has to be there where it is named; None: that score is 1 - donor - acceptor;
    not given: the column neither_score where there is one, else as None. `Lookup` says what was found.
    """

    donor: str = "donor_score"
    acceptor: str = "acceptor_score"
    neither: str | msgspec.UnsetType | None = msgspec.UNSET
    gene: str = "gene_id"
    position: str = "position"
    chrom: str = "chrom"
    strand: str = "strand"


class Lookup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How scores are found in a table, after a look at its columns: another way would be other features.

    scores : columns of donor and acceptor, and of neither where that is not what they leave of 1. by : gene and
    position, or chrom and position. strand : whether rows are told apart by it too.
    """

    scores: tuple[str, ...]
    by: Literal["gene", "position"]
    strand: bool = False

    def __str__(self) -> str:
        place = f"{'chrom' if self.by == 'position' else 'gene'} and position{' and strand' if self.strand else ''}"
        return f"{', '.join(self.scores)}, by {place}"


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

    sources : tables, tracks or weights, in the order `open_base` takes them. columns : of a table. lookup : what they
    came to. weights : of a position-weight model, all of it. versions : of the packages that ran a network.
    Without sources, lookup and versions it is of a base model that was not opened yet.
    """

    kind: Kind
    sources: tuple[Source, ...] = ()
    columns: ScoreColumns | None = None
    lookup: Lookup | None = None
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


def open_base(
    description: BaseDescription, sources: Sequence[Path] = (), *, scratch: Path, known: Sequence[Source] = ()
) -> BaseModel:
    """The base model that was described. Other versions of a network's packages than described are logged.

    Parameters
    ----------
    sources : sequence of Path
        A table, or tracks (`ScoreTracks`), as many as described: of the genes to score, so not always the files
        described.
        The weights of openspliceai: the very ones described. Nothing for pwm and spliceai.
    scratch : Path
        Folder for the table that a TSV file is turned into.
    known : sequence of Source
        `source_of` every file of `sources`, where that is known: they are not read for it again.

    Raises
    ------
    InputError
        Other weights than described, a table in which scores are found otherwise than described, unreadable sources.
    UsageError
        The wrong number of sources, or an optional package is not installed.
    """
    wanted = {"table": (1,), "bigwig": (2, 4), "openspliceai": (1,)}.get(description.kind, (0,))
    if description.kind == "bigwig" and description.sources:  # a strand's own scores, or not, are other features
        wanted = (len(description.sources),)
    described = ", ".join(s.name for s in description.sources)
    if len(sources) not in wanted:
        raise UsageError(
            f"the base model {description.kind} was given {len(sources)} file(s)",
            expected=f"{' or '.join(str(n or 'none') for n in wanted)}"
            f"{f', as {described}' if any(wanted) and described else ''}",
        )
    base: BaseModel
    if description.kind == "table":
        from metabatch.building.base_tables import ScoreTable

        table = ScoreTable(sources[0], description.columns or ScoreColumns(), scratch, known)
        _refuse_other_lookup(description.lookup, table.lookup, sources[0])
        return table
    if description.kind == "bigwig":
        from metabatch.building.base_tracks import ScoreTracks

        return ScoreTracks(*sources, known=known)
    if description.kind == "pwm":
        from metabatch.building.pwm import PositionWeightModel

        if description.weights is None:
            raise InputError("the description of the position-weight model has no weights", expected="its weights")
        return PositionWeightModel(description.weights)
    if description.kind == "openspliceai":
        from metabatch.building.base_networks import OpenSpliceAI

        base = OpenSpliceAI(sources[0], known)
    else:
        from metabatch.building.base_networks import SpliceAI

        base = SpliceAI()
    if description.sources or description.versions:
        found = base.describe()
        if description.sources:
            _refuse_other_weights(description, found)
        warn_of_other_versions(description, found)
    return base


def _refuse_other_lookup(described: Lookup | None, found: Lookup, path: Path) -> None:
    if described is not None and described != found:
        raise InputError(
            f"scores are found in {path.name} otherwise than when the features were made: {found}",
            expected=str(described),
            where=str(path),
            next_step="give a table with the same columns: other scores would be other features",
        )


def warn_of_other_versions(described: BaseDescription, found: BaseDescription) -> None:
    """Log the packages of a network that are here in another version: it may round otherwise."""
    other = [
        f"{name} {found.versions.get(name, 'missing')} ({version} then)"
        for name, version in described.versions.items()
        if found.versions.get(name) != version
    ]
    if other:
        log.warning("the base model %s ran with other versions when the features were made: %s; scores may differ in "
                    "their last digits", described.kind, ", ".join(other))  # fmt: skip


def _refuse_other_weights(described: BaseDescription, found: BaseDescription) -> None:
    if len(described.sources) != len(found.sources):
        raise InputError(
            f"the base model {found.kind} has {len(found.sources)} file(s) of weights",
            expected=f"{len(described.sources)}, as when the features were made",
        )
    for was, here in zip(described.sources, found.sources, strict=True):
        if was.sha256 != here.sha256:
            raise InputError(
                f"{here.name} is not the weights that the features were made with (sha256 {here.sha256[:12]}…)",
                expected=f"{was.name} with sha256 {was.sha256[:12]}…",
                next_step="give the same weights: scores of others would be other features",
            )


def source_of(path: Path) -> Source:
    """Reads the whole file."""
    return Source(path.name, path.stat().st_size, sha256_file(path))


def not_installed(what: str, extra: str, error: ImportError) -> UsageError:
    return UsageError(
        f"{what} needs a package that is not installed: {error}",
        expected=f"the optional packages of the extra {extra}",
        next_step=f"pip install 'metabatch[{extra}]'",
    )


def versions_of(kind: str) -> dict[str, str]:
    """Of the packages that run a network of this kind; without those that are not installed."""
    found = {}
    for name in _PACKAGES.get(kind, ()):
        with contextlib.suppress(PackageNotFoundError):  # said where it is opened
            found[name] = version(name)
    return found
