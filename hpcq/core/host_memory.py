"""Host memory that this process may use: of the machine, limited by its control groups and by its Slurm job.

The kernel kills a process that exceeds the limit of any control group above it, so the smallest limit counts. Both
versions of control groups are read, in the hierarchy that /proc/self/cgroup names, wherever it is mounted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from hpcq.core.frozen import dataclass

GIB = 2**30
_MIB = 2**20
_PROC = Path("/proc/self")
_JOB_MEMORY = (
    ("SLURM_MEM_PER_NODE", None),
    ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
    ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
)
"""Variables of a job with its memory in MiB, and with the number by which to multiply it."""


def host_memory_bytes(proc: Path = _PROC, environ: Mapping[str, str] = os.environ) -> int:
    """Return the bytes of host memory that this process may use, together with all others under the same limit.

    Args:
        proc: Folder of this process in /proc.
        environ: Environment variables. SLURM_MEM_PER_NODE (or _CPU or _GPU, by how it was requested) is a job's memory
            in MiB, also where Slurm does not use control groups; 0: all memory of the node.
    """
    limits = [_machine_bytes(), *_cgroup_limits(proc)]
    for per, count in _JOB_MEMORY:
        factors = environ.get(per, ""), environ.get(count, "") if count else "1"
        if all(factor.isdecimal() and int(factor) for factor in factors):
            limits.append(int(factors[0]) * int(factors[1]) * _MIB)
    return min(limits)


def _machine_bytes() -> int:
    """Return MemTotal of /proc/meminfo, which is that of an LXC container; sysconf has that of its host."""
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class _Hierarchy:
    """A mounted hierarchy of control groups.

    Attributes:
        mount_point: Where it is mounted.
        root: The control group that is mounted there; '/' outside containers.
        path: The control group of this process.
        file: Name of the file with the limit.
    """

    mount_point: Path
    root: PurePosixPath
    path: PurePosixPath
    file: str

    def limit_files(self) -> Iterator[Path]:
        """Yield the files of the limits of this process's control group and of all groups above it."""
        # In a container without a cgroup namespace, the path may be that on the host, of which only the root is here.
        below = self.path.relative_to(self.root) if self.path.is_relative_to(self.root) else PurePosixPath()
        for part in (below, *below.parents):
            yield self.mount_point / part / self.file


def _cgroup_limits(proc: Path) -> Iterator[int]:
    for hierarchy in _hierarchies(proc):
        for path in hierarchy.limit_files():
            try:
                yield int(path.read_text(encoding="ascii"))
            except (OSError, ValueError):  # no such file (the root group of version 2 has none), or "max"
                continue


def _hierarchies(proc: Path) -> Iterator[_Hierarchy]:
    """Yield the hierarchies with a memory controller: that of version 2, and that of version 1 (cgroups(7))."""
    paths: dict[str, PurePosixPath] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):  # version 2 has none
            # "/../x": a group outside of the namespace. Only the groups that are mounted here can be read.
            paths[controller] = PurePosixPath("/" if group.startswith("/..") else group)
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount_point = (_unescape(field) for field in before.split()[3:5])
        kind, _, options = after.split(maxsplit=2)
        is_version_1 = kind == "cgroup" and "memory" in options.split(",")
        path = paths.get("memory" if is_version_1 else "")
        if path is not None and (is_version_1 or kind == "cgroup2"):
            yield _Hierarchy(
                mount_point=Path(mount_point),
                root=PurePosixPath(root),
                path=path,
                file="memory.limit_in_bytes" if is_version_1 else "memory.max",
            )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is not mounted
        return []


def _unescape(field: str) -> str:
    """Decode the octal escapes of blanks and backslashes in mountinfo (proc_pid_mountinfo(5))."""
    return field.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\012", "\n").replace(r"\134", "\\")
