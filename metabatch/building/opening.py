"""A base model as it is asked for: opened, or fitted where it is one that is fitted here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from metabatch.building.base import (
    BaseDescription,
    BaseModel,
    Kind,
    ScoreColumns,
    Source,
    open_base,
    source_of,
    versions_of,
)
from metabatch.building.genes import Gene
from metabatch.building.genome import Genome
from metabatch.building.pwm import fit_pwm
from metabatch.data.shards import find_parquet
from metabatch.errors import InputError


@dataclass(frozen=True)
class BaseAsked:
    """Which base model, from which files. columns : of a table."""

    kind: Kind
    paths: tuple[Path, ...] = ()
    columns: ScoreColumns | None = None

    @property
    def fitted(self) -> bool:
        """Whether it is fitted on genes of the data set."""
        return self.kind == "pwm"

    def sources(self) -> list[Source]:
        """Its files; of a folder the parquet files in it."""
        return [source_of(file) for file in files_of(self.paths)]

    def text(self) -> str:
        """What it is besides its files: kind, columns, and the packages that run it."""
        versions = " ".join(f"{name} {v}" for name, v in versions_of(self.kind).items())
        return f"{self.kind} {msgspec.json.encode(self.columns).decode()} {versions}"


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Files with base scores or weights; of a folder the parquet files in it.

    Raises
    ------
    InputError
        One that does not exist.
    """
    files = [file for path in paths for file in (find_parquet(path) if path.is_dir() else [path])]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(f"base scores {missing[0]} do not exist", expected="a file, or a folder of parquet files")
    return files


def opened(
    asked: BaseAsked, fitted_on: Sequence[Gene], genome: Genome, scratch: Path, known: Sequence[Source] = (),
    stop: Callable[[], None] = lambda: None,
) -> BaseModel:  # fmt: skip
    """The base model of a new data set.

    Parameters
    ----------
    fitted_on : sequence of Gene
        For a base model that is fitted here.
    known : sequence of Source
        `asked.sources()`, where that was called before.
    stop : callable
        Called between genes where it is fitted here, and may raise.
    """
    if asked.fitted:
        return fit_pwm(fitted_on, genome, stop=stop)
    return open_base(BaseDescription(kind=asked.kind, columns=asked.columns), asked.paths, scratch=scratch, known=known)
