"""An output folder made in parts: where finished ones wait for the others, and whose folder it is.

`OUT/.parts` holds finished parts under their names in `files/`, and in `records/` the fingerprint they were made under
with their sha256. A part is used again when its record fits and the file agrees with it. Before the files are moved to
OUT their names are written down in `publishing.json`: killed in between, the next one knows them as its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from metabatch.errors import InputError, OwnedError
from metabatch.rundir.layout import is_passing
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import held
from metabatch.rundir.manifests import Done, load, to_json
from metabatch.rundir.markers import MARKER, finish_stage, is_marked
from metabatch.rundir.publish import publish_files, sha256_file, write_bytes

log = logging.getLogger(__name__)
STORE = ".parts"
_PUBLISHING = "publishing.json"


class PartRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A finished part. key : what it was made under; rows : written; counts : what else its maker counted."""

    key: str
    bytes: int
    sha256: str
    rows: int
    counts: dict[str, int]


class Store:
    """The finished parts of an output that is made in `out`; only for the owner of its lock.

    Parameters
    ----------
    key : str
        Fingerprint of all that decides the parts. Others' are made again.
    """

    def __init__(self, out: Path, key: str) -> None:
        self._out, self._key = out, key
        self._root = out / STORE
        self.files = self._root / "files"
        self._records = self._root / "records"

    def recover(self, names: Collection[str], *, published: bool) -> None:
        """Take back what a killed process was publishing, and drop what is none of the parts `names`.

        published : whether `out` has a marker, so that the files there are somebody's finished output.
        """
        listed = self._root / _PUBLISHING
        if not published:
            for name in publishing(self._out):
                if (self._out / name).is_file():
                    self.files.mkdir(parents=True, exist_ok=True)
                    if (self.files / name).exists():
                        (self._out / name).unlink()
                    else:
                        os.replace(self._out / name, self.files / name)
        listed.unlink(missing_ok=True)
        for file in self.files.glob("*"):
            if file.name not in names:
                file.unlink()

    def kept(self, name: str) -> PartRecord | None:
        """The record of a part that is there, whole, and made under this key."""
        file = self.files / name
        try:
            record = msgspec.json.decode((self._records / f"{name}.json").read_bytes(), type=PartRecord)
            whole = record.key == self._key and file.stat().st_size == record.bytes
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        if whole and sha256_file(file) == record.sha256:
            return record
        log.info("%s of an earlier attempt is made again: of other inputs or options, or damaged", name)
        return None

    def keep(self, folder: Path, name: str, *, rows: int, counts: dict[str, int] | None = None) -> PartRecord:
        """Take in the finished part `name`, the only file in `folder`."""
        file = folder / name
        record = PartRecord(
            key=self._key, bytes=file.stat().st_size, sha256=sha256_file(file), rows=rows, counts=counts or {}
        )
        self.take(folder)
        self._records.mkdir(exist_ok=True)
        write_bytes(self._records / f"{name}.json", to_json(record))
        return record

    def take(self, folder: Path) -> None:
        """Take in the files of `folder` without a record: they are made again after an interruption."""
        self.files.mkdir(parents=True, exist_ok=True)
        publish_files(folder, self.files)

    def publish(self, stage: str, fingerprint: str, inputs: Mapping[str, str], earlier: Done | None) -> None:
        """Move the files to `out` as the output of `stage`, and delete the store.

        Parameters
        ----------
        earlier : Done, optional
            The marker of the output that lies there and is replaced.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in self.files.glob("*")} | set(earlier.files if earlier is not None else ())
        write_bytes(self._root / _PUBLISHING, to_json(sorted(names)))  # these are about to come and go
        finish_stage(self.files, self._out, stage=stage, fingerprint=fingerprint, inputs=dict(inputs))
        self.clear()

    def clear(self) -> None:
        """Delete all of it."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._root)


def publishing(out: Path) -> list[str]:
    """Files in `out` that a killed process was moving there, or taking away."""
    try:
        return msgspec.json.decode((out / STORE / _PUBLISHING).read_bytes(), type=list[str])
    except FileNotFoundError:
        return []


def tidy_parts(out: Path) -> None:
    """Take away what killed processes left in a finished output; nothing while somebody is at work there."""
    tidy(out)
    if (out / STORE).exists():
        with contextlib.suppress(OwnedError, OSError), held(out, lambda: "", wait=False):  # not ours, or read-only
            shutil.rmtree(out / STORE, ignore_errors=True)


def earlier_output(out: Path, stage: str) -> Done | None:
    """The marker of what `stage` made in `out`; None for a new or empty folder, or one of an interrupted attempt.

    Raises
    ------
    InputError
        Anything else lies there: it is never touched, whatever was asked.
    """
    if is_marked(out):
        done = load(out / MARKER, Done)
        if done.stage == stage:
            return done
    elif not out.exists():
        return None
    elif out.is_dir():
        ours = {STORE, *publishing(out)}
        if all(is_passing(p.name) or p.name in ours for p in out.iterdir()):
            return None
    raise InputError(
        f"{out} exists and holds other files",
        expected=f"a new folder, or one that `{stage}` wrote",
        next_step="choose another OUT",
    )


@contextlib.contextmanager
def no_empty_folder(out: Path) -> Iterator[None]:
    """Take `out` away again when the block fails before anything was kept or published in it."""
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind; it goes on
        with contextlib.suppress(OSError):  # not empty: it was there before, or has finished parts
            out.rmdir()
        raise
