"""Files of records (attempts.jsonl, submissions.jsonl): a line of JSON each, added and never rewritten."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from metabatch.rundir.publish import named


def read_records[T](path: Path, kind: type[T]) -> list[T]:
    """All records, oldest first; a line cut short by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(line, type=kind))
    return found


def add_record(path: Path, record: msgspec.Struct) -> None:
    """Add a record and flush it to disk; one that was cut short before stays a line of its own."""
    line = msgspec.json.encode(record)
    with named(path), path.open("ab+") as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            line = line if handle.read(1) == b"\n" else b"\n" + line
        handle.write(line + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
