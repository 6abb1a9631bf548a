"""The memory limit is the smallest of every source, over all ancestors of the cgroup."""

from __future__ import annotations

from pathlib import Path

from metabatch.resources.limits import cpu_count, cpu_limits, memory_limits, oom_kills

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


def test_v1_ancestors_hidden_by_a_container_count_by_the_hierarchical_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/libpod/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT_V1),
            "sys/fs/cgroup/memory/memory.stat": f"cache 0\nhierarchical_memory_limit {70 << 20}\ntotal_cache 0",
        },
    )
    first = memory_limits(root, {})[0]
    assert first.bytes == 70 << 20
    assert "hierarchical" in first.source


def test_apptainer_as_root_sees_an_empty_cgroup_tree_and_falls_back_to_slurm(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "4:memory:/slurm/job_1\n0::/"})
    (root / "sys/fs/cgroup").mkdir(parents=True)
    assert memory_limits(root, {"SLURM_MEM_PER_NODE": "64"})[0].bytes == 64 << 20


def test_cpu_limits_from_affinity_slurm_and_both_kinds_of_quota(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    assert cpu_limits(bare, {})[0].source == "CPU affinity"
    assert cpu_limits(bare, {"SLURM_CPUS_PER_TASK": "1", "SLURM_CPUS_ON_NODE": "64"})[0].count == 1
    v2 = tree(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/job/step",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000",
            "sys/fs/cgroup/job/cpu.max": "150000 100000",
        },
    )
    assert ("cgroup v2", 1) in {(limit.source[:9], limit.count) for limit in cpu_limits(v2, {})}
    v1 = tree(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/x",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert ("cgroup v1", 1) in {(limit.source[:9], limit.count) for limit in cpu_limits(v1, {})}
    unlimited = tree(
        tmp_path / "none",
        {"proc/self/cgroup": "3:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
         "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
    )  # fmt: skip
    assert [limit.source for limit in cpu_limits(unlimited, {})] == ["CPU affinity"]


def test_the_kernels_count_of_oom_kills_can_be_read_here() -> None:
    count = oom_kills()
    assert count is not None
    assert count >= 0
