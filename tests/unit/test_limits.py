"""The memory limit is the smallest of every source, over all ancestors of the cgroup."""

from __future__ import annotations

from pathlib import Path

from metabatch.resources.limits import cpu_count, memory_limits

NO_LIMIT_V1 = 9223372036854771712


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_slurm_v1_limit_stands_on_an_ancestor(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/slurm/uid_0/job_7/step_0/task_0\n1:name=systemd:/x",
            "sys/fs/cgroup/memory/slurm/uid_0/job_7/step_0/task_0/memory.limit_in_bytes": str(NO_LIMIT_V1),
            "sys/fs/cgroup/memory/slurm/uid_0/job_7/step_0/memory.limit_in_bytes": str(NO_LIMIT_V1),
            "sys/fs/cgroup/memory/slurm/uid_0/job_7/memory.limit_in_bytes": str(300 << 20),
        },
    )
    first = memory_limits(root, {})[0]
    assert first.bytes == 300 << 20
    assert "job_7" in first.source


def test_v2_limit_and_max(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/memory.max": "max",
            "sys/fs/cgroup/a/memory.max": str(200 << 20),
        },
    )
    assert memory_limits(root, {})[0].bytes == 200 << 20


def test_container_whose_path_does_not_resolve_uses_the_mount_root(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/libpod/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(100 << 20),
        },
    )
    assert memory_limits(root, {})[0].bytes == 100 << 20


def test_slurm_variables_and_their_whole_node_zero(tmp_path: Path) -> None:
    assert memory_limits(tmp_path, {"SLURM_MEM_PER_NODE": "50"})[0].bytes == 50 << 20
    per_cpu = memory_limits(tmp_path, {"SLURM_MEM_PER_CPU": "20", "SLURM_CPUS_ON_NODE": "3"})[0]
    assert per_cpu.bytes == 60 << 20
    assert "SLURM_MEM_PER_CPU" in per_cpu.source
    assert "available" in memory_limits(tmp_path, {"SLURM_MEM_PER_NODE": "0"})[0].source


def test_cpu_count_is_what_the_process_may_use() -> None:
    assert cpu_count() >= 1
