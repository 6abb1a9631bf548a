"""What an analysis hands over; and how one that fails becomes an error in the report and costs nothing else.

An analysis is a function that returns a `Found`. `study` runs it, writes its tables and pictures, and gives the
`Section` that stands in analysis.json; the report is made from sections only, so its numbers are those of the JSON.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import polars as pl

from metabatch.errors import InterruptedRunError
from metabatch.rundir.manifests import to_json
from metabatch.rundir.publish import write_bytes
from metabatch.rundir.tables import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
FIGURES = "figures"
# Errors of the disk or the machine, which no analysis is to blame for.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM}
# How a cell of a table is written: text as it is; counts with separators; three decimals; three digits; with a sign;
# a share as a percentage.
Kind = Literal["text", "count", "number", "small", "signed", "percent"]
Cell = str | float | int | None


class ImpossibleError(Exception):
    """These rows or settings do not allow the analysis; the message says why. Nothing is wrong with the program."""


class Shown(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A small table of the report.

    columns, kinds : heading and way of writing of each column.
    note : what a reader must know to read it.
    """

    title: str
    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


class PictureFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture in figures/, beside a CSV of the same name. `width`, `height`: pixels."""

    name: str
    caption: str
    width: int
    height: int


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An analysis as it stands in analysis.json.

    status : made; impossible (`why`: what these rows or settings lack); failed (`why`: the error).
    on : which rows were looked at, and with which model.
    says, flags : findings in words; what a person should look into.
    facts : the numbers. shown : those of the report's tables. tables : files beside it.
    """

    name: str
    title: str
    status: Literal["made", "impossible", "failed"]
    why: str = ""
    on: str = ""
    says: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    facts: dict[str, Any] = {}
    shown: tuple[Shown, ...] = ()
    pictures: tuple[PictureFile, ...] = ()
    tables: tuple[str, ...] = ()
    seconds: float = 0.0


class Sections(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """analysis.json. `off`: analyses that were not asked for, or that memory did not allow (the plan says which)."""

    format_version: int = 1
    analyses: tuple[Section, ...]
    off: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure and its numbers. `name`: file stem, unlike those of all other analyses; `caption`: what it shows."""

    name: str
    caption: str
    figure: Figure
    numbers: pl.DataFrame


@dataclass(frozen=True)
class Found:
    """What an analysis found; see `Section`. `tables`: file stem -> frame, written as parquet."""

    on: str
    says: Sequence[str] = ()
    flags: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    shown: Sequence[Shown] = ()
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()


def study(name: str, title: str, make: Callable[[], Found], folder: Path) -> Section:
    """Run one analysis and write what it found below `folder`.

    An error of its own is logged with its traceback and becomes a failed section: never numbers made up, and never the
    end of the training that came before. Files of it that were written stay out of the section; a lack of memory or
    disk and an interrupt are no errors of the analysis, and are raised.
    """
    begun = time.monotonic()
    try:
        section = _written(name, title, make(), folder)
    except ImpossibleError as reason:
        section = Section(name=name, title=title, status="impossible", why=str(reason))
    except (MemoryError, InterruptedRunError):
        raise
    except Exception as error:  # whatever it is: the models are trained, and the report says what is lacking
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        log.exception("analysis %s failed", name)
        section = Section(name=name, title=title, status="failed", why=f"{type(error).__name__}: {error}"[:2000])
    return msgspec.structs.replace(section, seconds=round(time.monotonic() - begun, 3))


def _written(name: str, title: str, found: Found, folder: Path) -> Section:
    for stem, frame in found.tables.items():
        write_table(folder / f"{stem}.parquet", frame)
    pictures = tuple(_save(p, folder / FIGURES) for p in found.pictures)
    # Through JSON once, so that what is rendered now is what a reader of the file would get (NaN is null there).
    facts = msgspec.json.decode(to_json(found.facts))
    shown = msgspec.json.decode(to_json(list(found.shown)), type=tuple[Shown, ...])
    return Section(
        name=name, title=title, status="made", on=found.on, says=tuple(found.says), flags=tuple(found.flags),
        facts=facts, shown=shown, pictures=pictures, tables=tuple(f"{t}.parquet" for t in found.tables),
    )  # fmt: skip


def _save(picture: Picture, folder: Path) -> PictureFile:
    folder.mkdir(exist_ok=True)
    dpi = 110
    picture.figure.savefig(folder / f"{picture.name}.png", dpi=dpi)
    write_bytes(folder / f"{picture.name}.csv", picture.numbers.write_csv().encode())
    width, height = (round(inches * dpi) for inches in picture.figure.get_size_inches())
    return PictureFile(name=picture.name, caption=picture.caption, width=width, height=height)


def save_sections(path: Path, sections: Sections) -> None:
    """Write analysis.json."""
    write_bytes(path, to_json(sections))
