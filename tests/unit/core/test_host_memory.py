"""Host memory: the smallest limit of the machine, the control groups above the process, and the Slurm job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from hpcq.core.host_memory import host_memory_bytes

MIB = 2**20
JOB = "/slurm/uid_7/job_42"
UNLIMITED_V1 = "9223372036854771712"


def write_groups(folder: Path, mounts: str, groups: str, limits: Mapping[str, str]) -> Path:
    """Write the files that describe the control groups of a process; return its folder in /proc."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text(mounts.replace("/sys", str(folder / "sys")))
    (proc / "cgroup").write_text(groups)
    for name, limit in limits.items():
        path = folder / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    return proc


V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(
    ("mounts", "groups", "limits", "mib"),
    [
        (V2, f"0::{JOB}\n", {f"fs/cgroup{JOB}/memory.max": str(64 * MIB)}, 64),
        (
            V2,
            f"0::{JOB}/step_0/task_0\n",
            {f"fs/cgroup{JOB}/step_0/memory.max": "max", f"fs/cgroup{JOB}/memory.max": str(96 * MIB)},
            96,
        ),
        (
            V2,
            f"0::{JOB}\n",
            {f"fs/cgroup{JOB}/memory.max": str(64 * MIB), "fs/cgroup/slurm/memory.max": str(32 * MIB)},
            32,
        ),
        (
            V1,
            f"5:memory:{JOB}/step_0\n0::/\n",
            {
                f"fs/cgroup/memory{JOB}/step_0/memory.limit_in_bytes": UNLIMITED_V1,
                f"fs/cgroup/memory{JOB}/memory.limit_in_bytes": str(48 * MIB),
                "fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            },
            48,
        ),
        (
            V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            "5:cpuacct,memory:/a\n0::/b\n",
            {
                "fs/cgroup/memory/a/memory.limit_in_bytes": str(80 * MIB),
                "fs/cgroup/unified/b/memory.max": str(72 * MIB),
            },
            72,
        ),
        (
            V1.replace("0:32 /", "0:32 /docker/abc"),
            "5:memory:/docker/abc/inner\n",
            {"fs/cgroup/memory/memory.limit_in_bytes": str(16 * MIB)},
            16,
        ),
        (V2, "0::/docker/abc\n", {"fs/cgroup/memory.max": str(24 * MIB)}, 24),
        (V2, "0::/../other\n", {"fs/cgroup/memory.max": str(24 * MIB)}, 24),
        (V2.replace("cgroup rw", r"with\040blank rw"), "0::/\n", {"fs/with blank/memory.max": str(8 * MIB)}, 8),
    ],
    ids=[
        "version 2",
        "a limit of a group above",
        "the smallest of nested limits",
        "version 1",
        "both versions",
        "container, version 1",
        "container, version 2",
        "outside of the namespace",
        "a mount point with a blank",
    ],
)
def test_the_smallest_limit_of_the_control_groups_counts(
    tmp_path: Path, mounts: str, groups: str, limits: Mapping[str, str], mib: int
) -> None:
    """Of both versions, at any level above the process, and wherever they are mounted."""
    assert host_memory_bytes(write_groups(tmp_path, mounts, groups, limits), {}) == mib * MIB


@pytest.mark.parametrize(
    ("groups", "limits"), [("0::/\n", {}), (f"0::{JOB}\n", {f"fs/cgroup{JOB}/memory.max": "max"}), ("", {})]
)
def test_without_limits_it_is_the_memory_of_the_machine(tmp_path: Path, groups: str, limits: Mapping[str, str]) -> None:
    """'max', a missing file and a missing /proc are no limits."""
    assert host_memory_bytes(write_groups(tmp_path, V2, groups, limits), {}) == psutil.virtual_memory().total
    assert host_memory_bytes(tmp_path / "nowhere", {}) == psutil.virtual_memory().total


@pytest.mark.parametrize(("variable", "mib"), [("40", 40), ("100", 64), ("0", 64), ("", 64), ("all", 64)])
def test_the_memory_of_a_slurm_job_is_a_limit(tmp_path: Path, variable: str, mib: int) -> None:
    """Slurm does not always use control groups; a job with --mem=0 has all memory of the node."""
    proc = write_groups(tmp_path, V2, "0::/\n", {"fs/cgroup/memory.max": str(64 * MIB)})
    assert host_memory_bytes(proc, {"SLURM_MEM_PER_NODE": variable}) == mib * MIB


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({"SLURM_MEM_PER_CPU": "5", "SLURM_CPUS_ON_NODE": "8"}, 40),
        ({"SLURM_MEM_PER_GPU": "20", "SLURM_GPUS_ON_NODE": "2"}, 40),
        ({"SLURM_MEM_PER_GPU": "20"}, 64),
    ],
)
def test_memory_that_was_requested_per_cpu_or_gpu_is_a_limit(
    tmp_path: Path, variables: dict[str, str], mib: int
) -> None:
    """It is multiplied by what the job has on the node."""
    proc = write_groups(tmp_path, V2, "0::/\n", {"fs/cgroup/memory.max": str(64 * MIB)})
    assert host_memory_bytes(proc, variables) == mib * MIB


def test_this_process_has_memory() -> None:
    """On the machine that runs the tests, at least as much as the test itself uses."""
    assert host_memory_bytes() >= psutil.Process().memory_info().rss
