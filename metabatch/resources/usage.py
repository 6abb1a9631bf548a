"""What was really used, from the kernel: wall, CPU, rows read and peak resident memory per phase."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from metabatch.resources.limits import cgroup_peak

log = logging.getLogger(__name__)


class Phase(msgspec.Struct, kw_only=True):
    """One phase. `rows_asked`: rows of the genes wanted; `rows_read`: rows decoded from parquet for them."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows_read: int = 0
    rows_asked: int = 0
    peak_rss_bytes: int = 0


class ResourceUsage(msgspec.Struct, kw_only=True):
    """resource_usage.json. `predicted_peak_bytes` is None for stages without a prediction."""

    format_version: int = 1
    peak_rss_bytes: int
    peak_cgroup_bytes: int | None
    predicted_peak_bytes: int | None
    budget_bytes: int
    budget_source: str
    threads: int
    phases: list[Phase]


def peak_rss() -> int:
    """VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("no VmHWM in /proc/self/status")


def reset_peak_rss() -> bool:
    """Start VmHWM anew from the present size; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim_memory() -> None:
    """Give freed heap back to the system: glibc keeps it otherwise (FIELD_NOTES)."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Accounts:
    """Collects the phases of one process; the overall peak survives the per-phase resets."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._peak = peak_rss()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Account for a block; the phase is kept also when the block fails."""
        self._peak = max(self._peak, peak_rss())
        reset_peak_rss()
        entry = Phase(name=name)
        wall, cpu = time.monotonic(), time.process_time()
        try:
            yield entry
        finally:
            entry.seconds = round(time.monotonic() - wall, 3)
            entry.cpu_seconds = round(time.process_time() - cpu, 3)
            entry.peak_rss_bytes = peak_rss()
            self._peak = max(self._peak, entry.peak_rss_bytes)
            self.phases.append(entry)
            log.debug("phase %s: %.1f s, peak %d MiB", name, entry.seconds, entry.peak_rss_bytes >> 20)

    def usage(
        self, *, predicted_peak_bytes: int | None, budget_bytes: int, budget_source: str, threads: int
    ) -> ResourceUsage:
        self._peak = max(self._peak, peak_rss())
        return ResourceUsage(
            peak_rss_bytes=self._peak,
            peak_cgroup_bytes=cgroup_peak(),
            predicted_peak_bytes=predicted_peak_bytes,
            budget_bytes=budget_bytes,
            budget_source=budget_source,
            threads=threads,
            phases=self.phases,
        )

    @property
    def peak(self) -> int:
        return max(self._peak, peak_rss())
