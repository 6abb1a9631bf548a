"""Progress of long work: a bar on a terminal, plain lines in a batch log, a heartbeat file for `status`."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from tqdm import tqdm

from metabatch.resources.usage import anonymous_bytes, resident_bytes

_LINE_SECONDS = 30.0
_LINE_FRACTION = 0.1
_FILE_SECONDS = 2.0

log = logging.getLogger(__name__)


class ProgressRecord(msgspec.Struct, frozen=True, kw_only=True):
    """progress.json: where a running stage stands. `rss_bytes`, `anonymous_bytes`: memory of the process now."""

    stage: str
    done: int
    total: int
    unit: str
    elapsed_seconds: float
    updated: float
    rss_bytes: int
    anonymous_bytes: int


class Progress:
    """Counts finished units of known total.

    Parameters
    ----------
    label, unit : str
        What is being done, and of what (``rounds``, ``rows``).
    total : int
        All units.
    file : Path, optional
        Heartbeat file, rewritten every few seconds.
    """

    def __init__(self, label: str, total: int, unit: str, file: Path | None = None) -> None:
        self._label, self._total, self._unit, self._file = label, total, unit, file
        self._done = 0
        self._start = time.monotonic()
        self._line_at, self._line_done = self._start, 0
        self._file_at = 0.0
        on_terminal = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr) if on_terminal else None

    def __enter__(self) -> Self:
        self._write_file(force=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._line_done < self._done:
            self._line()

    def skip(self, units: int) -> None:
        """Lower the total by units that turned out not to be needed (early stopping)."""
        self._total = max(self._done, self._total - units)
        if self._bar is not None:
            self._bar.total = self._total
            self._bar.refresh()

    def advance(self, units: int = 1) -> None:
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        else:
            now = time.monotonic()
            step = (self._done - self._line_done) / max(1, self._total)
            if now - self._line_at >= _LINE_SECONDS or (step >= _LINE_FRACTION and now - self._line_at >= 1.0):
                self._line()
        self._write_file()

    def _line(self) -> None:
        now = time.monotonic()
        elapsed = now - self._start
        left = elapsed / self._done * (self._total - self._done) if self._done else float("nan")
        log.info(
            "%s: %d of %d %s (%.0f %%), %.0f s gone, about %.0f s left",
            self._label, self._done, self._total, self._unit,
            100 * self._done / max(1, self._total), elapsed, left,
        )  # fmt: skip
        self._line_at, self._line_done = now, self._done

    def _write_file(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._file is None or (not force and now - self._file_at < _FILE_SECONDS):
            return
        self._file_at = now
        record = ProgressRecord(
            stage=self._label,
            done=self._done,
            total=self._total,
            unit=self._unit,
            elapsed_seconds=round(now - self._start, 1),
            updated=time.time(),
            rss_bytes=resident_bytes(),
            anonymous_bytes=anonymous_bytes(),
        )
        temporary = self._file.with_name(f".{self._file.name}.tmp")
        with contextlib.suppress(OSError):  # a heartbeat that cannot be written must not end the work
            temporary.write_bytes(msgspec.json.encode(record))
            temporary.replace(self._file)


def read_progress(file: Path) -> ProgressRecord | None:
    """The last heartbeat, or None."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=ProgressRecord)
    except (OSError, msgspec.MsgspecError):
        return None
