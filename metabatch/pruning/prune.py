"""`prune-features`: a data set without the features that say nothing of their own, shard by shard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from metabatch import __version__
from metabatch.data.shards import find_parquet
from metabatch.errors import InputError, UsageError
from metabatch.options import Options, validate
from metabatch.pruning.columns import Table, look_at
from metabatch.pruning.decide import decide
from metabatch.pruning.record import RECORD, PrunedFeatures
from metabatch.pruning.request import PruneRequest, check_request
from metabatch.pruning.rewrite import disk_space, rewrite
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.rundir.fingerprint import hash_texts
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Done, FileRecord, load, to_json
from metabatch.rundir.markers import check_stage, is_marked
from metabatch.rundir.publish import attempt_folder, named, sha256_file
from metabatch.rundir.recipe import DATASET_FILE, MANIFEST_FILE, read_built, refuse_other_shards
from metabatch.rundir.store import PartRecord, Store, earlier_output, no_empty_folder, tidy_parts

log = logging.getLogger(__name__)
STAGE = "prune-features"
# Beside the shards: which genes they hold, whatever wrote that.
_MANIFESTS = f"{Path(MANIFEST_FILE).stem}*"


@dataclass(frozen=True)
class PruneResult:
    """What was dropped; kept_parts : shards of an interrupted attempt that were used again."""

    record: PrunedFeatures
    shards: int
    already: bool
    kept_parts: int = 0


def prune_features(
    data: str | os.PathLike[str], out: Path, request: PruneRequest, options: Options, *, force: bool = False
) -> PruneResult:
    """Write the shards of `data` without redundant features into `out`, with pruned_features.json and a done.json.

    The same call after a kill goes on with the shards that were finished, to the same bytes.

    Parameters
    ----------
    data : path
        Parquet file or folder of shards.
    out : Path
        New folder; its files appear complete, with a done.json, or not at all.
    options : Options
        The columns' roles, features left out, and the seed.
    force : bool
        Replace an earlier pruning in `out` once the new one is complete.

    Raises
    ------
    UsageError
        An option that cannot be used, or `data` and `out` that are not apart.
    InputError
        Data that cannot be used, shards other than their dataset.json lists, or `out` holding something else.
    """
    check_request(request)
    validate(options)
    _apart(Path(data), out)
    earlier_output(out, STAGE)  # before the data is read
    # The same in any order.
    request = msgspec.structs.replace(request, keep=tuple(sorted(set(request.keep))))
    options = msgspec.structs.replace(
        options, **{f: tuple(sorted(set(getattr(options, f)))) for f in ("exclude_features", "allow_features")}
    )
    table = look_at(str(data), options, request.keep)
    refuse_other_shards(Path(data), read_built(Path(data)), {s.name: (s.bytes, s.sha256) for s in table.shards})
    sides = _side_files(Path(data), [s.name for s in table.shards])
    fingerprint = _fingerprint(table, request, options, sides)
    # Another version's finished output is what was asked for; its parts are not gone on with.
    key = hash_texts([fingerprint, f"metabatch {__version__}", f"pyarrow {pa.__version__}"])
    done = earlier_output(out, STAGE)
    if done is not None and not force:
        finished = _finished(done, out, fingerprint, str(data))
        tidy_parts(out)
        return finished
    with no_empty_folder(out), stop_on_signal() as stop, hold_folder(out):
        done = earlier_output(out, STAGE)  # somebody may have come to an end while we waited for the folder
        if done is not None and not force:
            return _finished(done, out, fingerprint, str(data))
        store = Store(out, key)
        names = [RECORD, *(shard_name(s.name) for s in table.shards), *(p.name for p in sides)]
        store.recover(names, published=is_marked(out))
        try:
            record = _decided(table, request, options, store, out, stop)
            kept, shards = _make_shards(table, record, key, out, stop)
        except InputError:  # of the data: with other data, these shards are of no use
            store.clear()
            raise
        _make_sides(sides, record, shards, store, out)
        store.publish(STAGE, fingerprint, record.inputs, done)
    return PruneResult(record, len(table.shards), already=False, kept_parts=kept)


def _apart(data: Path, out: Path) -> None:
    """Refuse an output in the data, or around it: it would be taken for data, or replace it."""
    mine = out.resolve()
    for place in (data, *find_parquet(data)):
        theirs = place.resolve()
        if mine == theirs or mine in theirs.parents or (place is data and theirs in mine.parents):
            raise UsageError(
                f"OUT ({out}) and DATASET ({data}) are not apart",
                expected="a folder that neither lies in the data set nor holds a part of it",
                next_step="choose another OUT; the data set stays as it is",
            )


def shard_name(name: str) -> str:
    """What a shard is called in the output: as it was, where that is found in a folder (see `find_parquet`)."""
    if name.endswith(".parquet") and not name.startswith((".", "_")):
        return name
    return (Path(name).stem.lstrip("._") or "positions") + ".parquet"


def _fingerprint(table: Table, request: PruneRequest, options: Options, sides: Sequence[Path]) -> str:
    decided = [
        *sorted(f"{s.name} {s.sha256}" for s in table.shards),
        *(f"{p.name} {sha256_file(p)}" for p in sides),
        to_json(request).decode(),
        to_json(options).decode(),
    ]
    return hash_texts(decided)


def _finished(done: Done, out: Path, fingerprint: str, data: str) -> PruneResult:
    """What lies finished in `out`, if it is what is asked for."""
    if done.fingerprint != fingerprint:
        raise InputError(
            f"{out} holds a pruning of other data, or with other options",
            expected=f"{data} pruned with these options, or a new folder",
            next_step="choose another OUT, or --force to replace it",
        )
    check_stage(out, stage=STAGE, fingerprint=fingerprint)
    record = load(out / RECORD, PrunedFeatures)
    return PruneResult(record, len(record.inputs), already=True)


def _decided(
    table: Table, request: PruneRequest, options: Options, store: Store, out: Path, stop: StopFlag
) -> PrunedFeatures:
    """What goes: as an interrupted attempt decided, or decided now."""
    if store.kept(RECORD) is not None:
        return load(store.files / RECORD, PrunedFeatures)
    record = decide(table, request, options.seed, stop)
    with attempt_folder(out) as folder:
        _write(folder / RECORD, to_json(record))
        store.keep(folder, RECORD, rows=0)
    return record


def _make_shards(
    table: Table, record: PrunedFeatures, key: str, out: Path, stop: StopFlag
) -> tuple[int, dict[str, PartRecord]]:
    """Have every shard in the store; how many were there from before, and what all are."""
    dropped = {p.feature for p in record.pruned}
    numbers = {c.name for c in table.features} - dropped
    # Whatever decided: shards of another decision are made again.
    store = Store(out, hash_texts([key, *sorted(dropped)]))
    disk_space(out, table.files, dropped)
    kept, records = 0, dict[str, PartRecord]()
    with Progress("prune", table.rows, "rows") as progress:
        for file, shard in sorted(zip(table.files, table.shards, strict=True), key=lambda pair: pair[0].name):
            stop.check()
            name = shard_name(file.name)
            if (earlier := store.kept(name)) is not None:
                records[name] = earlier
                kept += 1
                progress.skip(shard.rows)
                continue
            with attempt_folder(out) as folder:
                scratch, made = folder / "scratch", folder / "made"
                scratch.mkdir()
                made.mkdir()
                rows = rewrite(file, made / name, scratch, dropped, numbers, table.protected, progress, stop)
                records[name] = store.keep(made, name, rows=rows)
    if kept:
        log.info("%d of %d shard(s) were finished before the interruption", kept, len(table.shards))
    return kept, records


def _side_files(data: Path, shards: Sequence[str]) -> list[Path]:
    """Of a folder, or of a single file that is a shard by the description beside it."""
    folder = data if data.is_dir() else data.parent
    if folder != data and not read_built(data).shards:
        return []
    found = sorted(p for p in folder.glob(_MANIFESTS) if p.is_file() and p.name not in shards)
    return found + [p for p in [folder / DATASET_FILE] if p.is_file()]


def _make_sides(
    sides: Sequence[Path], record: PrunedFeatures, shards: Mapping[str, PartRecord], store: Store, out: Path
) -> None:
    """Copy the files beside the shards; the description gets a note of what was pruned."""
    with attempt_folder(out) as folder:
        for file in sides:
            raw = file.read_bytes()
            _write(folder / file.name, raw if file.name != DATASET_FILE else _noted(file, raw, record, shards))
        store.take(folder)


def _noted(file: Path, raw: bytes, record: PrunedFeatures, shards: Mapping[str, PartRecord]) -> bytes:
    """The description of the new shards; an entry more in `pruned` says what the old ones were."""
    try:
        description: Mapping[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        earlier = msgspec.convert(description.get("pruned", []), list[Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file.name} cannot be read: {error}", expected="a JSON object", where=str(file),
            next_step="restore it, or take it out of the folder",
        ) from None  # fmt: skip
    note: dict[str, Any] = {
        "metabatch_version": record.metabatch_version,
        "features": [p.feature for p in record.pruned],
        "reasons": RECORD,
        "inputs": record.inputs,
    }
    if "shards" not in description:
        return to_json({**description, "pruned": [*earlier, note]})
    files = {name: FileRecord(bytes=made.bytes, sha256=made.sha256) for name, made in sorted(shards.items())}
    note["shards"] = description["shards"]
    return to_json({**description, "shards": files, "pruned": [*earlier, note]})


def _write(path: Path, data: bytes) -> None:
    with named(path):
        path.write_bytes(data)
