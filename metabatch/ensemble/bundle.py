"""Loading the bundle that `consolidate` wrote."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from shlex import quote

from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError
from metabatch.models.member import load_member
from metabatch.resources.limits import cpu_count
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.manifests import load
from metabatch.rundir.markers import check_stage

log = logging.getLogger(__name__)
BUNDLE_FILE = "bundle.json"


def member_folder(root: Path, index: int) -> Path:
    return root / "members" / f"{index:02d}"


def missing_text(bundle: Bundle) -> str:
    """That an ensemble lacks instances, in words; nothing when it does not."""
    if not bundle.missing:
        return ""
    named = ", ".join(str(i) for i in bundle.missing)
    return f"made without instance {named} of {len(bundle.members) + len(bundle.missing)} (--allow-missing)"


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """The folder that holds bundle.json: `path` itself or its ``ensemble``.

    Raises
    ------
    InputError
        When neither does.
    """
    place = Path(path)
    for folder in (place, place / "ensemble"):
        if (folder / BUNDLE_FILE).is_file():
            return folder
    raise InputError(
        f"no model in {path}",
        expected="a run directory after `consolidate`, its ensemble folder, or a copy of that folder",
        next_step=f"bin/consolidate {quote(str(path))}" if (place / "plan.json").is_file() else None,
    )


def load_bundle(
    path: str | os.PathLike[str], *, fill_missing_kmers: bool = False, threads: int | None = None
) -> MetaModel:
    """Load a bundle after comparing every file with its checksum; a warning is logged when it lacks instances."""
    folder = find_bundle(path)
    bundle = load(folder / BUNDLE_FILE, Bundle)
    check_stage(folder, stage="consolidate", fingerprint=bundle.fingerprint)
    if bundle.missing:
        log.warning("%s", missing_text(bundle))
    members = [load_member(member_folder(folder, m.index), threads or cpu_count()) for m in bundle.members]
    return MetaModel(bundle, members, fill_missing_kmers=fill_missing_kmers)
