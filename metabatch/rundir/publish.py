"""Getting files into the run directory so that a reader never meets half of one.

Everything is written under an attempt-scoped name, flushed to disk, and given its final name by one
``os.replace``. Correctness rests on that, not on locks. A stage writes its done.json last; without
it the other files do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from metabatch.resources.process import this_process
from metabatch.rundir.layout import ATTEMPT_PREFIX, TEMPORARY


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or folder to disk; file systems that refuse it for folders are let off."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; on any error the old content stays and nothing is left over."""
    replace_file(path, (data,))


def replace_file(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """As `write_bytes`, of several pieces one after the other."""
    with prepared(path, pieces):
        pass


@contextlib.contextmanager
def prepared(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[None]:
    """Have the new content of `path` on disk before the block, and put it in place after it, if the block succeeds."""
    temporary = path.with_name(f".{path.name}-{this_process()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with named(path), temporary.open("wb") as handle:
            for piece in pieces:
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        yield
        os.replace(temporary, path)
    except BaseException:  # an interrupt too must leave nothing behind; it goes on
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """The system names no file when a write fails: say which one it was."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def attempt_folder(parent: Path) -> Iterator[Path]:
    """A private folder inside `parent`, removed at the end whatever happens."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{ATTEMPT_PREFIX}{this_process()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_files(source: Path, target: Path) -> None:
    """Move every file below `source` to the same place below `target`, each by one ``os.replace``.

    The caller removes the stage's marker before and writes it after, so a crash in between leaves a
    stage that is simply not done.
    """
    files = sorted(p for p in source.rglob("*") if p.is_file())
    for path in files:
        fsync_path(path)
    for path in files:
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    for folder in {target, *((target / p.relative_to(source)).parent for p in files)}:
        fsync_path(folder)
