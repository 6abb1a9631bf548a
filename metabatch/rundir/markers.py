"""Completion markers: a stage is done when its done.json says so and every file agrees with it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from metabatch import __version__
from metabatch.errors import InputError
from metabatch.rundir.manifests import Done, FileRecord, load, to_json
from metabatch.rundir.publish import prepared, publish_files, sha256_file

MARKER = "done.json"
# NFS shows another host's file late (close-to-open): look again before calling it damaged.
_SECOND_LOOK_SECONDS = 2.0


def utc_now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def finish_stage(
    source: Path,
    target: Path,
    *,
    stage: str,
    fingerprint: str,
    ledger: Sequence[str] | None = None,
    inputs: dict[str, str] | None = None,
) -> Done:
    """Publish every file of the attempt folder `source` into `target`, then write the marker.

    What an earlier stage left in `target` is removed: files that its marker recorded, and all that lies in the folders
    that this one publishes (a marker may be lost, its files still there).

    Parameters
    ----------
    ledger : sequence of str, optional
        Genes really trained on.
    inputs : dict of str to str, optional
        sha256 of the markers this stage was made from, by name.
    """
    files = {
        str(path.relative_to(source)): FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(p for p in source.rglob("*") if p.is_file())
    }
    done = Done(
        metabatch_version=__version__,
        stage=stage,
        fingerprint=fingerprint,
        finished=utc_now(),
        files=files,
        ledger=None if ledger is None else tuple(ledger),
        inputs=inputs or {},
    )
    before = _recorded(target)
    with prepared(target / MARKER, (to_json(done),)):  # all that takes space is on disk before the old stage goes
        (target / MARKER).unlink(missing_ok=True)
        publish_files(source, target)
        for name in before - files.keys():
            file = target / name
            if target.resolve() in file.resolve().parents:
                file.unlink(missing_ok=True)
        _remove_strangers(target, files.keys(), {name.split("/")[0] for name in files.keys() | before if "/" in name})
    return done


def _remove_strangers(target: Path, files: Collection[str], folders: Collection[str]) -> None:
    """Delete files below `folders` that are not among `files`, and folders that are left empty."""
    for top in (target / name for name in folders):
        if top.is_symlink():
            continue
        for path in sorted(top.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif str(path.relative_to(target)) not in files:
                path.unlink()


def check_stage(folder: Path, *, stage: str, fingerprint: str) -> Done:
    """The marker of a finished stage, after comparing every file with it.

    Raises
    ------
    InputError
        No marker, another plan's marker, or a file that is missing, cut short or altered.
    """
    problem = _problem(folder, stage, fingerprint)
    if isinstance(problem, str) and "differs" in problem:
        time.sleep(_SECOND_LOOK_SECONDS)
        problem = _problem(folder, stage, fingerprint)
    if isinstance(problem, str):
        raise InputError(problem, where=str(folder))
    return problem


def is_marked(folder: Path) -> bool:
    return (folder / MARKER).is_file()


def _recorded(folder: Path) -> set[str]:
    """Files named by the marker in `folder`; none when there is no readable one."""
    try:
        return set(load(folder / MARKER, Done).files)
    except InputError:
        return set()


def _problem(folder: Path, stage: str, fingerprint: str) -> Done | str:
    path = folder / MARKER
    if not path.is_file():
        return "not done (no done.json)"
    try:
        done = load(path, Done)
    except InputError as error:
        return error.found
    if done.stage != stage:
        return f"done.json is of stage {done.stage}, not {stage}"
    if done.fingerprint != fingerprint:
        return "made under another plan (fingerprint differs from plan.json)"
    for name, record in done.files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} differs from done.json: the file is missing"
        size = file.stat().st_size
        if size != record.bytes:
            return f"{name} differs from done.json: {size} bytes, recorded {record.bytes}"
        if sha256_file(file) != record.sha256:
            return f"{name} differs from done.json: sha256 does not match"
    return done
