"""The memory and CPUs this process may really use: the smallest of every source, and which one won.

psutil sees the host only. A cgroup limit may stand on any ancestor (Slurm sets it on job and step,
the task's own says unlimited); in podman/docker the path of /proc/self/cgroup does not resolve and the
mount root holds the limit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED = 1 << 60  # v1 writes 2^63 rounded down to a page for "no limit"


@dataclass(frozen=True)
class Limit:
    """A limit in bytes and the source that set it."""

    bytes: int
    source: str


@dataclass(frozen=True)
class CpuLimit:
    """A number of CPUs and the source that set it."""

    count: int
    source: str


def memory_limits(root: Path = Path("/"), environ: dict[str, str] | None = None) -> list[Limit]:
    """Every memory limit that can be seen from here, smallest first.

    Parameters
    ----------
    root : Path
        Where /proc and /sys lie (a fixture tree in tests).
    environ : dict, optional
        Environment to read Slurm's variables from; default ``os.environ``.
    """
    env = dict(os.environ) if environ is None else environ
    found = [Limit(psutil.virtual_memory().available, "memory available on this machine")]
    found += _cgroup_limits(root)
    found += _slurm_limits(env)
    return sorted(found, key=lambda limit: limit.bytes)


def cpu_limits(root: Path = Path("/"), environ: dict[str, str] | None = None) -> list[CpuLimit]:
    """Every limit on the CPUs of this process: affinity, Slurm's allocation, cgroup quotas; smallest first."""
    env = dict(os.environ) if environ is None else environ
    found = [CpuLimit(len(os.sched_getaffinity(0)), "CPU affinity")]
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        text = env.get(name, "")
        if text.isdigit() and int(text) > 0:
            found.append(CpuLimit(int(text), f"{name}={text}"))
            break
    found += _cpu_quotas(root)
    return sorted(found, key=lambda limit: limit.count)


def cpu_count() -> int:
    """CPUs this process may use, at least 1."""
    return max(1, cpu_limits()[0].count)


def oom_kills() -> int | None:
    """Processes the kernel killed for lack of memory, as counted nearest to this process; None where it cannot be read.

    The memory cgroup's own counter, else the machine's.
    """
    for folder, version in _cgroup_folders(Path("/"), "memory"):
        count = _read_field(folder / ("memory.events" if version == 2 else "memory.oom_control"), "oom_kill")
        if count is not None:
            return count
    return _read_field(Path("/proc/vmstat"), "oom_kill")


def cgroup_peak() -> int | None:
    """The kernel's high-water mark of this process's memory cgroup (page cache included), or None."""
    for path, version in _cgroup_folders(Path("/"), "memory"):
        for name in ("memory.peak",) if version == 2 else ("memory.max_usage_in_bytes",):
            value = _read_int(path / name)
            if value is not None:
                return value
    return None


def _cgroup_folders(root: Path, controller: str) -> list[tuple[Path, int]]:
    """Existing cgroup folders of this process for `controller`, innermost first, with the cgroup version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[tuple[Path, int]] = []
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers == "":
            # Beside v1 controllers, v2 has a folder of its own (systemd's "hybrid" layout).
            bases, version = [root / "sys/fs/cgroup/unified", root / "sys/fs/cgroup"], 2
        elif controller in controllers.split(","):
            bases, version = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller], 1
        else:
            continue
        parts = [p for p in inner.split("/") if p and p != ".."]
        for base in [b for b in bases if b.is_dir()][:1]:
            places = (base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
            folders += [(place, version) for place in places if place.is_dir()]
    return folders


def _cgroup_limits(root: Path) -> list[Limit]:
    limits = []
    for folder, version in _cgroup_folders(root, "memory"):
        value = _read_int(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if value is not None and value < _UNLIMITED:
            limits.append(Limit(value, f"cgroup v{version} limit at {folder}"))
        if version == 1:  # ancestors that cannot be seen from inside a container count here
            value = _read_field(folder / "memory.stat", "hierarchical_memory_limit")
            if value is not None and value < _UNLIMITED:
                limits.append(Limit(value, f"cgroup v1 hierarchical limit at {folder}"))
    return limits


def _slurm_limits(env: dict[str, str]) -> list[Limit]:
    limits = []
    node = env.get("SLURM_MEM_PER_NODE", "")
    if node.isdigit() and int(node) > 0:  # 0 stands for the whole node
        limits.append(Limit(int(node) << 20, f"SLURM_MEM_PER_NODE={node}"))
    per_cpu = env.get("SLURM_MEM_PER_CPU", "")
    cpus = env.get("SLURM_CPUS_ON_NODE") or env.get("SLURM_CPUS_PER_TASK") or "1"
    if per_cpu.isdigit() and int(per_cpu) > 0 and cpus.isdigit():
        limits.append(Limit((int(per_cpu) * int(cpus)) << 20, f"SLURM_MEM_PER_CPU={per_cpu} x {cpus} CPUs"))
    return limits


def _cpu_quotas(root: Path) -> list[CpuLimit]:
    found = []
    for folder, version in _cgroup_folders(root, "cpu"):
        if version == 2:
            quota, period = [*_read_words(folder / "cpu.max"), "", ""][:2]
        else:
            quota, period = (str(_read_int(folder / name) or "") for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            # Part of a CPU more than whole ones is no thread's worth.
            found.append(CpuLimit(max(1, int(quota) // int(period)), f"cgroup v{version} CPU quota at {folder}"))
    return found


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _read_field(path: Path, name: str) -> int | None:
    """The number after `name` in a file of "name number" lines."""
    words = _read_words(path)
    place = words.index(name) + 1 if name in words else len(words)
    return int(words[place]) if place < len(words) and words[place].isdigit() else None


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None
