"""What this machine has to compute with: cores and memory that this process may use. Knows no profile."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GIB = 2**30
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_UNIT_MEMORY_GIB = 6
"""Host memory reckoned for one local unit: a model of some hundred million weights in float32, and its libraries."""


def core_count() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_gib() -> float:
    """Memory of this machine or of the container around this process, GiB, rounded down to a tenth."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no limit: there is no version 2 cgroup, or it says "max"
        available = min(available, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return int(available / _GIB * 10) / 10


def parallel_units(cpus_per_unit: int) -> int:
    """Units that this machine can run at once, at least one."""
    return max(1, min(core_count() // cpus_per_unit, int(memory_gib() // _UNIT_MEMORY_GIB)))
