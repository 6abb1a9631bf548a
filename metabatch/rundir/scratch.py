"""Node-local scratch, for the page files of external memory above all: private to a process, removed after it.

Whether the owner of a folder still lives is told by a lock on a file in it: the kernel drops it with the process,
also where another container or PID namespace cannot be seen into. (flock is unreliable on NFS; pages do not lie there.)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from metabatch.errors import BudgetError

log = logging.getLogger(__name__)
_OURS = "metabatch-scratch-"
_LOCK = ".held-by-metabatch"
# A folder whose lock was never held is being made, unless it is older than this, s.
_MAKING_SECONDS = 60.0
_IN_MEMORY = {"tmpfs", "ramfs"}
_NETWORK = {"nfs", "nfs4", "lustre", "cifs", "smb3", "beegfs", "gpfs", "ceph", "fuse.sshfs", "9p"}


def scratch_folder() -> Path:
    """$SLURM_TMPDIR, else $TMPDIR or the system's, else /var/tmp: the first on a disk of the node that takes files.

    In a read-only image that may be none: then the first that takes any. Files of a file system in memory would count
    as the memory that external memory is to save.
    """
    named = [os.environ.get("SLURM_TMPDIR"), tempfile.gettempdir(), "/var/tmp"]  # noqa: S108 (a private folder is made in it)
    there = [Path(p) for p in named if p and Path(p).is_dir()]
    places = [p for p in there if os.access(p, os.W_OK | os.X_OK)] or there  # of none the error says which
    for place in places:
        if file_system(place) not in _IN_MEMORY | _NETWORK:
            return place
    return places[0]


def file_system(place: Path) -> str:
    """Type of the file system `place` lies on, as the kernel names it; empty when unknown."""
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    real = place.resolve()
    return next((mounts[folder] for folder in (real, *real.parents) if folder in mounts), "")


@contextlib.contextmanager
def page_folder(page_bytes: int) -> Iterator[Path]:
    """A private folder for page files.

    Raises
    ------
    BudgetError
        Less than `page_bytes` are free there.
    """
    scratch = scratch_folder()
    remove_dead_folders()  # before the space is looked at
    free = shutil.disk_usage(scratch).free
    if free < page_bytes:
        raise BudgetError(
            f"external memory needs about {page_bytes / 2**30:.1f} GB in {scratch}, {free / 2**30:.1f} GB are free",
            next_step="point TMPDIR (or SLURM_TMPDIR) to a node-local disk with more space",
        )
    kind = file_system(scratch)
    if kind in _IN_MEMORY | _NETWORK:
        log.warning("the page files lie in %s, which is %s: slow, or counted as memory; point TMPDIR to a local disk",
                    scratch, kind)  # fmt: skip
    with private_folder("pages") as folder:
        yield folder


@contextlib.contextmanager
def private_folder(what: str) -> Iterator[Path]:
    """A folder in scratch that is removed after the block, or by whoever comes next when this process is killed."""
    remove_dead_folders()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{_OURS}{what}-", dir=scratch_folder()))
        stack.callback(_remove, folder)
        lock = stack.enter_context((folder / _LOCK).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("held\n")  # who finds this and gets the lock finds a dead owner
        lock.flush()
        yield folder


def remove_dead_folders() -> None:
    """Delete what killed processes left in scratch: folders whose lock was held and is not any more.

    A folder without our lock file is somebody's own, or just being made; only an empty one is taken away, later.
    """
    for folder in scratch_folder().glob(f"{_OURS}*"):
        with contextlib.suppress(OSError):  # another user's, or removed by another process in this moment
            is_old = time.time() - folder.stat().st_mtime > _MAKING_SECONDS
            if not (folder / _LOCK).is_file():
                if is_old:
                    folder.rmdir()
            elif _is_free(folder / _LOCK, even_if_empty=is_old):
                _remove(folder)


def _remove(folder: Path) -> None:
    """The lock goes last: killed on the way, what is left is still known as ours. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_free(file: Path, *, even_if_empty: bool) -> bool:
    """Whether nobody holds a lock that somebody held once."""
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return bool(lock.read()) or even_if_empty
