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


def cpu_count() -> int:
    """CPUs this process may use: affinity, Slurm's allocation and the cgroup quota, whichever is least."""
    counts = [len(os.sched_getaffinity(0))]
    text = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if text.isdigit() and int(text) > 0:
        counts.append(int(text))
    counts += _cpu_quota()
    return max(1, min(counts))


def cgroup_peak() -> int | None:
    """The kernel's high-water mark of this process's memory cgroup (page cache included), or None."""
    for path, version in _cgroup_folders(Path("/")):
        for name in ("memory.peak",) if version == 2 else ("memory.max_usage_in_bytes",):
            value = _read_int(path / name)
            if value is not None:
                return value
    return None


def _cgroup_folders(root: Path) -> list[tuple[Path, int]]:
    """Existing memory cgroup folders of this process, innermost first, with the cgroup version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[tuple[Path, int]] = []
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers == "":
            base, version = root / "sys/fs/cgroup", 2
        elif "memory" in controllers.split(","):
            base, version = root / "sys/fs/cgroup/memory", 1
        else:
            continue
        parts = [p for p in inner.split("/") if p and p != ".."]
        for depth in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:depth])
            if folder.is_dir():
                folders.append((folder, version))
    return folders


def _cgroup_limits(root: Path) -> list[Limit]:
    limits = []
    for folder, version in _cgroup_folders(root):
        value = _read_int(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if value is not None and value < _UNLIMITED:
            limits.append(Limit(value, f"cgroup v{version} limit at {folder}"))
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


def _cpu_quota() -> list[int]:
    counts = []
    for folder, version in _cgroup_folders(Path("/")):
        if version == 2 and (folder / "cpu.max").is_file():
            quota, _, period = (folder / "cpu.max").read_text().strip().partition(" ")
            if quota.isdigit() and period.isdigit():
                counts.append(max(1, int(quota) // int(period)))
    for base in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct")):
        period_us, quota_us = _read_int(base / "cpu.cfs_period_us"), _read_int(base / "cpu.cfs_quota_us")
        if period_us and quota_us and quota_us > 0:
            counts.append(max(1, quota_us // period_us))
    return counts


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None
