"""The parts of a prediction: how the data is cut into them, and where finished ones wait for the others.

`OUT/.parts` holds finished parts under their names in `files/`, and in `records/` the fingerprint they were made under
with their sha256. A part is used again when its record fits and the file agrees with it. Before the files are moved to
OUT their names are written down in `publishing.json`: killed in between, the next one knows them as its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from metabatch.data.batches import Piece
from metabatch.data.shards import open_parquet
from metabatch.errors import OwnedError
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import held
from metabatch.rundir.manifests import to_json
from metabatch.rundir.publish import publish_files, sha256_file, write_bytes

log = logging.getLogger(__name__)
PART_ROWS = 1_000_000
STORE = ".parts"
_PUBLISHING = "publishing.json"


@dataclass(frozen=True)
class Part:
    """Row groups `first` to `last` of a file, one piece of the output. `stem`: its name without the suffix."""

    stem: str
    file: Path
    first: int
    last: int
    rows: int

    @property
    def pieces(self) -> list[Piece]:
        return [Piece(self.file, group, None) for group in range(self.first, self.last + 1)]


def cut(files: Sequence[Path], most_rows: int = PART_ROWS) -> list[Part]:
    """The parts of all files in order: of at most `most_rows` rows, or one row group; files without rows have none."""
    parts: list[Part] = []
    for file in files:
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        first, rows = 0, 0
        for number, size in enumerate(groups):
            if rows and rows + size > most_rows:
                parts.append(Part(f"part-{len(parts):05d}", file, first, number - 1, rows))
                first, rows = number, 0
            rows += size
        if rows:
            parts.append(Part(f"part-{len(parts):05d}", file, first, len(groups) - 1, rows))
    return parts


class PartRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A finished part. key : what it was made under; rows : written; asked : given to the meta-model."""

    key: str
    bytes: int
    sha256: str
    rows: int
    asked: int


class Store:
    """The finished parts of predictions into `out`; only for the owner of its lock.

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

        published : whether `out` has a marker, so that the files there are somebody's finished predictions.
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
        log.info("%s of an earlier attempt is made again: of another model, data or options, or damaged", name)
        return None

    def keep(self, folder: Path, name: str, *, rows: int, asked: int) -> PartRecord:
        """Take in the finished part `name`, the only file in `folder`."""
        file = folder / name
        record = PartRecord(
            key=self._key, bytes=file.stat().st_size, sha256=sha256_file(file), rows=rows, asked=asked
        )  # fmt: skip
        self.take(folder)
        self._records.mkdir(exist_ok=True)
        write_bytes(self._records / f"{name}.json", to_json(record))
        return record

    def take(self, folder: Path) -> None:
        """Take in the files of `folder` without a record: they are made again after an interruption."""
        self.files.mkdir(parents=True, exist_ok=True)
        publish_files(folder, self.files)

    def announce(self, names: Collection[str]) -> None:
        """Write down which files of `out` are about to come and go."""
        self.files.mkdir(parents=True, exist_ok=True)
        write_bytes(self._root / _PUBLISHING, to_json(sorted(names)))

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
    """Take away what killed processes left in finished predictions; nothing while somebody is at work there."""
    tidy(out)
    if (out / STORE).exists():
        with contextlib.suppress(OwnedError, OSError), held(out, lambda: "", wait=False):  # not ours, or read-only
            shutil.rmtree(out / STORE, ignore_errors=True)
