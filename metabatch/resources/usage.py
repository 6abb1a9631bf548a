"""What was really used, from the kernel: wall, CPU, rows read and peak resident memory per phase."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from metabatch.resources.limits import Limit, cgroup_peak

_SAMPLE_SECONDS = 0.05
_M_MMAP_THRESHOLD, _MAPPED_FROM = -3, 128 << 10  # malloc.h; bytes

log = logging.getLogger(__name__)


class Phase(msgspec.Struct, kw_only=True):
    """One phase.

    rows_asked : rows of the genes wanted. rows_read : rows decoded from parquet for them. Both count every one of the
        `passes` over the data.
    peak_rss_bytes : VmHWM. peak_anonymous_bytes : without mapped files, sampled.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows_read: int = 0
    rows_asked: int = 0
    peak_rss_bytes: int = 0
    peak_anonymous_bytes: int = 0
    passes: int = 1


class ResourceUsage(msgspec.Struct, kw_only=True):
    """resource_usage.json.

    measured_peak_bytes : what the prediction is held against: VmHWM, or for external memory, whose mapped page
        files count as resident, the anonymous part.
    predicted_peak_bytes : None for stages without a prediction.
    rung, external, batch_rows, parts : how an instance was trained (see `metabatch.training.ladder`).
    restored_boosters, restored_rounds : taken from checkpoints of attempts before; phases are of the last attempt.
    checkpoint_seconds : what writing checkpoints took.
    worker_peak_bytes : VmHWM of every worker of a distributed instance when its trees were grown, by rank.
    device, device_why : where an instance was trained, and why there.
    """

    format_version: int = 1
    measured_peak_bytes: int
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    peak_cgroup_bytes: int | None
    predicted_peak_bytes: int | None
    budget_bytes: int
    budget_source: str
    limit_bytes: int
    limit_source: str
    rung: str | None
    external: bool
    batch_rows: int
    parts: int
    threads: int
    phases: list[Phase]
    after_fold_bytes: list[int]
    restored_boosters: int = 0
    restored_rounds: int = 0
    checkpoint_seconds: float = 0.0
    worker_peak_bytes: list[int] = []
    device: str | None = None
    device_why: str | None = None


def peak_rss() -> int:
    """VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no VmHWM in /proc/self/status")


def anonymous_bytes(pid: int | None = None) -> int:
    """Anonymous and shared memory of a process (default: this one) as the kernel counts it; 0 when it is gone.

    Mapped files (libraries, the page files of external memory) are not in it: the kernel takes them back at need.
    """
    return _status_bytes(pid, "RssAnon:", "RssShmem:")


def resident_bytes() -> int:
    """VmRSS of this process."""
    return _status_bytes(None, "VmRSS:")


def _status_bytes(pid: int | None, *names: str) -> int:
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(names))


def reset_peak_rss() -> bool:
    """Start VmHWM anew from the present size; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim_memory() -> None:
    """Give freed heap back to the system: glibc keeps it otherwise (FIELD_NOTES)."""
    _glibc("malloc_trim", 0)


def map_large_blocks() -> None:
    """From now on, blocks of 128 KiB and more are mapped each on its own, and so are gone as soon as they are freed.

    glibc starts so, but raises the limit with every such block that is freed, up to 32 MiB; later ones then come from
    the heap, where small blocks that live longer keep them apart (mallopt(3), M_MMAP_THRESHOLD).
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, _MAPPED_FROM)


def _glibc(name: str, *numbers: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to trim or to set
        getattr(ctypes.CDLL("libc.so.6"), name)(*numbers)


class Accounts:
    """Collects the phases of one process; the overall peaks survive the per-phase resets."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.after_fold: list[int] = []
        self.worker_peaks: list[int] = []
        self._rss = peak_rss()
        self._anonymous = anonymous_bytes()
        self._sampled = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Sample anonymous memory for the time of the block: the kernel keeps no high-water mark of it."""
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(_SAMPLE_SECONDS):
                self._sampled = max(self._sampled, anonymous_bytes())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Account for a block; the phase is kept also when the block fails."""
        self._settle()
        reset_peak_rss()
        self._sampled = anonymous_bytes()
        entry = Phase(name=name)
        wall, cpu = time.monotonic(), time.process_time()
        try:
            yield entry
        finally:
            entry.seconds = round(time.monotonic() - wall, 3)
            entry.cpu_seconds = round(time.process_time() - cpu, 3)
            entry.peak_rss_bytes = peak_rss()
            entry.peak_anonymous_bytes = max(self._sampled, anonymous_bytes())
            self._settle()
            self.phases.append(entry)
            log.debug("phase %s: %.1f s, peak %d MiB, anonymous %d MiB", name, entry.seconds,
                      entry.peak_rss_bytes >> 20, entry.peak_anonymous_bytes >> 20)  # fmt: skip

    def note_fold(self) -> None:
        """Remember the memory held now, after a fold."""
        trim_memory()
        self.after_fold.append(anonymous_bytes())

    def peak(self, *, external: bool) -> int:
        """The peak so far, as `measured_peak_bytes`."""
        self._settle()
        return self._anonymous if external else self._rss

    def usage(
        self, *, predicted_peak_bytes: int | None, budget_bytes: int, budget_source: str, threads: int,
        limit: Limit, rung: str | None = None, external: bool = False, batch_rows: int = 0, parts: int = 1,
        restored_boosters: int = 0, restored_rounds: int = 0, checkpoint_seconds: float = 0.0,
        device: str | None = None, device_why: str | None = None,
    ) -> ResourceUsage:  # fmt: skip
        """The record. With `external` the page files are mapped into memory: only the anonymous part counts."""
        return ResourceUsage(
            measured_peak_bytes=self.peak(external=external),
            peak_rss_bytes=self._rss,
            peak_anonymous_bytes=self._anonymous,
            peak_cgroup_bytes=cgroup_peak(),
            predicted_peak_bytes=predicted_peak_bytes,
            budget_bytes=budget_bytes,
            budget_source=budget_source,
            limit_bytes=limit.bytes,
            limit_source=limit.source,
            rung=rung,
            external=external,
            batch_rows=batch_rows,
            parts=parts,
            restored_boosters=restored_boosters,
            restored_rounds=restored_rounds,
            checkpoint_seconds=checkpoint_seconds,
            threads=threads,
            phases=self.phases,
            after_fold_bytes=self.after_fold,
            worker_peak_bytes=self.worker_peaks,
            device=device,
            device_why=device_why,
        )

    def _settle(self) -> None:
        self._rss = max(self._rss, peak_rss())
        self._anonymous = max(self._anonymous, self._sampled, anonymous_bytes())
