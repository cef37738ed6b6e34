"""CPU seconds of commands, also relative to the imports of the libraries that they use, for tests and benchmarks."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = "numpy, h5py, pydantic, rich.table, argparse, json, tomllib"
"""Their imports are a unit of CPU time: about 0.2 s, more on a slow or busy machine, as for the commands themselves."""

ROUNDS = 3


def least_cpu_seconds(
    commands: Sequence[tuple[Sequence[str], Path]], *, cache: Path, variables: Mapping[str, str] | None = None
) -> list[float]:
    """Return the CPU seconds of each command and its children: the smallest of several runs, with compiled modules.

    The commands run in turn, since a machine can be twice as fast for some seconds.

    Args:
        commands: Commands with their working directories.
        cache: Folder for compiled modules.
        variables: Further environment variables.
    """
    environment = {**os.environ, **(variables or {}), "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    rounds = [[_cpu_seconds(command, folder, environment) for command, folder in commands] for _ in range(1 + ROUNDS)]
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]  # the first round compiles


def cpu_seconds(
    command: Sequence[str], *, folder: Path, cache: Path, variables: Mapping[str, str] | None = None
) -> float:
    """Return `least_cpu_seconds` of one command."""
    return least_cpu_seconds([(command, folder)], cache=cache, variables=variables)[0]


def library_command(python: str) -> list[str]:
    """Return the command that imports LIBRARIES."""
    return [python, "-c", f"import {LIBRARIES}"]


def _cpu_seconds(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or b"Traceback" in done.stderr:
        raise RuntimeError(f"{command}: {done.stderr.decode()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
