"""Resources that one command of hpcq uses: CPU seconds, wall seconds and peak memory of its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_STARTER = """
import json, os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 1, 2)])
_, status, used = os.wait4(pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss]), file=sys.stderr)
"""
"""A small process between this one and the command: Linux counts the memory of a process that starts another to the
peak memory of the other (setmax_mm_hiwater_rss in execve)."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources of one command: of its process and of all processes that it waited for."""

    cpu_s: float
    wall_s: float
    memory_mib: float


def measure(folder: Path, *arguments: str | Path, codes: Sequence[int] = (0,)) -> Usage:
    """Run a command of hpcq and return what it used.

    Args:
        folder: Working directory.
        arguments: Arguments of `hpcq`.
        codes: Exit codes that are no error.

    Raises:
        RuntimeError: The command failed.
    """
    command = [sys.executable, "-m", "hpcq", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start_s = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        starter = [sys.executable, "-I", "-S", "-c", _STARTER, *command]
        subprocess.run(starter, cwd=folder, stdout=output, stderr=error, env=environment, check=True)
        wall_s = time.perf_counter() - start_s
        output.seek(0)
        error.seek(0)
        text, (code, cpu_s, kib) = output.read().decode(errors="replace"), json.loads(error.read())
    if code not in codes:
        raise RuntimeError(f"{' '.join(command)}: exit code {code}\n{text[-3000:]}")
    return Usage(cpu_s=cpu_s, wall_s=wall_s, memory_mib=kib / 1024)


def growth(sizes: Sequence[int], rows: Sequence[Usage]) -> str:
    """Return the CPU time per additional unit between the last two sizes, relative to that between the first two."""
    if len(rows) < 3:  # noqa: PLR2004 - two differences
        return ""
    first, second = (
        (rows[at + 1].cpu_s - rows[at].cpu_s) / (sizes[at + 1] - sizes[at]) for at in (len(rows) - 3, len(rows) - 2)
    )
    return f"{second / max(first, 1e-6):.2f}"
