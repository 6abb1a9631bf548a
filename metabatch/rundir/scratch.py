"""Node-local scratch for the page files of external memory: private to a process, removed after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from metabatch.errors import BudgetError
from metabatch.rundir.publish import attempt_folder, remove_dead_attempts

_PAGES = "metabatch-pages-"


def scratch_folder() -> Path:
    """$SLURM_TMPDIR, else $TMPDIR or the system's: never the run directory, which may lie on NFS."""
    return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())


@contextlib.contextmanager
def page_folder(page_bytes: int) -> Iterator[Path]:
    """A private folder for page files.

    Raises
    ------
    BudgetError
        Less than `page_bytes` are free there.
    """
    scratch = scratch_folder()
    remove_dead_pages()  # before the space is looked at
    free = shutil.disk_usage(scratch).free
    if free < page_bytes:
        raise BudgetError(
            f"external memory needs about {page_bytes / 2**30:.1f} GB in {scratch}, {free / 2**30:.1f} GB are free",
            next_step="point TMPDIR (or SLURM_TMPDIR) to a node-local disk with more space",
        )
    with attempt_folder(scratch, _PAGES) as folder:
        yield folder


def remove_dead_pages() -> None:
    """Delete the page files of processes of this host that are gone."""
    remove_dead_attempts(scratch_folder(), _PAGES)
