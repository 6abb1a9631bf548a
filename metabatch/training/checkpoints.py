"""Boosters kept on disk while an instance is trained: finished ones, and the one that is growing.

A checkpoint is one file, published by one ``os.replace``: a line with the format and the sha256 of the header, the
header as one line of JSON, then the blobs it names, each with its own sha256. A booster is kept with its configuration,
which holds the state of XGBoost's random numbers: it grows on to the last bit as if it had never stopped (shown in
tests/unit/test_checkpoints.py). A file that is damaged, or of another plan, version or parameters is not used; the
booster is then trained again, to the same result.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import xgboost as xgb

from metabatch.resources.signals import StopFlag
from metabatch.rundir.publish import replace_file

log = logging.getLogger(__name__)
Blobs = dict[str, bytes | bytearray | memoryview]
_MAGIC = "metabatch-checkpoint 3"
_NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})
# Writing a checkpoint may take this part of the time between two; slow ones are written less often.
_SHARE = 0.01


class _Blob(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    finished: bool
    facts: dict[str, float | int | bool | None]
    blobs: dict[str, _Blob]


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read. `facts`: numbers that go with it; `blobs`: model, configuration, arrays."""

    finished: bool
    facts: dict[str, Any]
    blobs: dict[str, bytes]

    def number(self, name: str) -> float:
        """A fact that may be NaN (JSON has none: it is written as null)."""
        value = self.facts[name]
        return float("nan") if value is None else float(value)

    def array(self, name: str) -> np.ndarray:
        """One of the arrays, float32, one-dimensional, not to be written to."""
        return np.frombuffer(self.blobs[name], dtype=np.float32)


def booster_blobs(booster: xgb.Booster) -> Blobs:
    """A growing booster, with the state of its random numbers."""
    return {"model": booster.save_raw("ubj"), "config": booster.save_config().encode()}


class Checkpoints:
    """The checkpoints of one instance.

    Parameters
    ----------
    folder : Path
        Where they lie.
    key : str
        What decides the boosters beside their parameters: plan, parts, version of XGBoost. Others' are not used.
    seconds : float
        A growing booster is kept when this long has passed since it was kept last; 0: after every round.
    stop : StopFlag
        When it is set, the growing booster is kept at once and the work ends.

    Attributes
    ----------
    restored_boosters, restored_rounds : int
        What was taken from checkpoints: finished boosters, and trees of all.
    writing_seconds : float
        What keeping took.
    """

    def __init__(self, folder: Path, key: Mapping[str, object], seconds: float, stop: StopFlag) -> None:
        self._folder, self._key, self._seconds, self._stop = folder, key, seconds, stop
        self.restored_boosters = self.restored_rounds = 0
        self.writing_seconds = 0.0
        self.on_restored: Callable[[int], None] = lambda _: None  # told the rounds that need not be trained again

    def slot(self, name: str, params: Mapping[str, object]) -> Slot:
        """The place of one booster, named within the instance. `params`: of XGBoost; threads do not matter."""
        key = {**self._key, "name": name, "params": {k: v for k, v in params.items() if k != "nthread"}}
        digest = hashlib.sha256(msgspec.json.encode(key, order="deterministic")).hexdigest()
        return Slot(self, self._folder / f"{name}.ckpt", digest, self._seconds, self._stop)

    def clear(self) -> None:
        """Delete them all."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)


class Slot:
    """The checkpoint of one booster."""

    def __init__(self, owner: Checkpoints, path: Path, key: str, seconds: float, stop: StopFlag) -> None:
        self._owner, self._path, self._key, self._seconds, self._stop = owner, path, key, seconds, stop
        self._kept_at, self._cost = time.monotonic(), 0.0

    def read(self) -> Saved | None:
        """What was kept of this booster, or None. A file that cannot be used is named and left out."""
        try:
            saved = _read(self._path, self._key)
        except FileNotFoundError:
            return None
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("checkpoint %s is not used, the booster is trained again: %s", self._path, error)
            return None
        if saved.finished:
            self._owner.restored_boosters += 1
        rounds = int(saved.facts["rounds_done"])
        self._owner.restored_rounds += rounds
        self._owner.on_restored(rounds)
        return saved

    def keep_growing(
        self, model: Callable[[], Blobs], facts: dict[str, Any],
        arrays: Callable[[], Mapping[str, np.ndarray]] | None = None,
    ) -> None:  # fmt: skip
        """Called after every round: keeps the model when it is time to, or when the work is to stop (then raises).

        `model`, `arrays`: give its blobs, and the float32 arrays to keep with it, when it is time.

        Raises
        ------
        InterruptedRunError
            A signal asked the work to stop.
        """
        if self._stop.signal is not None or self._is_due():
            begun = time.monotonic()
            self._write(facts, model() | _as_blobs(arrays() if arrays else {}), finished=False)
            self._kept_at = time.monotonic()
            self._cost = self._kept_at - begun
            self._owner.writing_seconds += self._cost
        self._stop.check()

    def keep_finished(
        self, facts: dict[str, Any], *, model: bytes | bytearray | None = None,
        arrays: Mapping[str, np.ndarray] = _NOTHING,
    ) -> None:  # fmt: skip
        """The booster is through: keep what the instance needs of it. `arrays`: of float32."""
        blobs: Blobs = {} if model is None else {"model": model}
        begun = time.monotonic()
        self._write(facts, blobs | _as_blobs(arrays), finished=True)
        self._owner.writing_seconds += time.monotonic() - begun

    def _is_due(self) -> bool:
        since = time.monotonic() - self._kept_at
        return not self._seconds or since >= max(self._seconds, self._cost / _SHARE)

    def _write(self, facts: dict[str, Any], blobs: Blobs, *, finished: bool) -> None:
        named = {n: _Blob(len(b), hashlib.sha256(b).hexdigest()) for n, b in blobs.items()}
        header = msgspec.json.encode(_Header(self._key, finished, facts, named))
        first = f"{_MAGIC} {hashlib.sha256(header).hexdigest()}\n".encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, (first, header, b"\n", *blobs.values()))


def _as_blobs(arrays: Mapping[str, np.ndarray]) -> Blobs:
    return {name: memoryview(np.ascontiguousarray(a, dtype=np.float32)).cast("B") for name, a in arrays.items()}


def _read(path: Path, key: str) -> Saved:
    with path.open("rb") as handle:
        magic, _, digest = handle.readline(200).decode("ascii", "replace").rstrip("\n").rpartition(" ")
        if magic != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC!r}")
        line = handle.readline().removesuffix(b"\n")
        if hashlib.sha256(line).hexdigest() != digest:
            raise ValueError("its header is damaged")
        header = msgspec.json.decode(line, type=_Header)
        if header.key != key:
            raise ValueError("it was made under another plan, version or parameters")
        blobs = {name: handle.read(blob.bytes) for name, blob in header.blobs.items()}
    for name, blob in header.blobs.items():
        if hashlib.sha256(blobs[name]).hexdigest() != blob.sha256:
            raise ValueError(f"its {name} is damaged ({len(blobs[name])} of {blob.bytes} bytes)")
    return Saved(header.finished, header.facts, blobs)
