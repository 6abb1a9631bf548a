"""Input files that are packed: told, unpacked into scratch once, and refused when they are cut off."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from metabatch.errors import BudgetError, InputError

_GZIP_MAGIC = b"\x1f\x8b"


def is_gzip(path: Path) -> bool:
    """By its content; bgzip is gzip too."""
    with path.open("rb") as handle:
        return handle.read(2) == _GZIP_MAGIC


@contextlib.contextmanager
def complete_gzip(path: Path) -> Iterator[None]:
    """Errors of unpacking `path` as InputError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path.name} is damaged: {error}",
            expected="a complete gzip file",
            where=str(path),
            next_step="fetch or write the file again",
        ) from None


def copy_stem(path: Path) -> str:
    """Name of what is made from `path` in scratch: another for a file that was changed or lies elsewhere."""
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return f"{path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def need_space(folder: Path, size: int, what: str, instead: str) -> None:
    """Refuse to begin what takes `size` bytes in `folder` when they are not free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise BudgetError(
            f"{what} takes about {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free",
            next_step=f"make space there, or {instead}",
        )
