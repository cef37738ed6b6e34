"""Sandbox for code that a model wrote: a process with limits, in separate namespaces where the kernel allows them.

In namespaces, the code has no network and sees no other process, and all files are read-only except for an empty folder
in memory. This protects against accidents, not against an attacker. Without namespaces only the limits remain.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from hpcq.core.frozen import dataclass

_RUNNER = Path(__file__).with_name("runner.py")
_UNSHARE = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--ipc")
_TRIAL_S = 60.0
"""Time limit of the program that tests whether namespaces are available."""
_MIB = 2**20


class Isolation(StrEnum):
    """How code is separated from the machine."""

    NAMESPACES = "namespaces"
    LIMITS = "limits only"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one program.

    Attributes:
        elapsed_seconds: Time of computing, sleeping and waiting, without the time in which other processes had the
            processors. On an idle machine this is wall-clock time, which Hugging Face's code_eval limits to 3 s.
        cpu_seconds: Processor time of all threads; ends code that does not react to the first limit.
        wall_seconds: Wall-clock time, with the start of Python; ends what the other limits do not end.
        memory_bytes: Address space of each process.
        file_bytes: Size of each file.
        files: Open files.
        processes: Processes and threads of the user; in namespaces, of the program. Python's own functions that start
            processes are removed, because Linux does not apply this limit to root.
    """

    elapsed_seconds: float = 3.0
    cpu_seconds: int = 10
    wall_seconds: float = 120.0
    memory_bytes: int = 4096 * _MIB
    file_bytes: int = 16 * _MIB
    files: int = 256
    processes: int = 64


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """Result of a program.

    Attributes:
        passed: Whether it ran to its end without an error.
        reason: Why it did not: 'ended by a limit', or 'failed'; '' if it passed.
    """

    passed: bool
    reason: str = ""


def run_program(program: str, limits: Limits | None = None) -> ProgramResult:
    """Run Python code in the sandbox. A program passes if its last statement completes; an earlier exit fails."""
    with tempfile.TemporaryDirectory(prefix="hpcq-code-") as folder:
        return _run(program, limits or Limits(), folder, isolation())


@lru_cache(maxsize=1)
def isolation() -> Isolation:
    """Return how this machine can isolate code, from a test program."""
    if shutil.which("unshare") is None:
        return Isolation.LIMITS
    with tempfile.TemporaryDirectory(prefix="hpcq-code-") as folder:
        trial = _run("pass", Limits(wall_seconds=_TRIAL_S), folder, Isolation.NAMESPACES)
    return Isolation.NAMESPACES if trial.passed else Isolation.LIMITS


def _run(program: str, limits: Limits, folder: str, isolated: Isolation) -> ProgramResult:
    token = secrets.token_hex(16)
    is_isolated = isolated is Isolation.NAMESPACES
    document = {
        "program": program,
        "token": token,
        "folder": folder,
        "is_isolated": is_isolated,
        "seconds": limits.elapsed_seconds,
        "limits": {
            "CPU": limits.cpu_seconds,
            "AS": limits.memory_bytes,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.files,
            "NPROC": limits.processes,
            "CORE": 0,
        },
    }
    prefix = ["unshare", *_UNSHARE] if is_isolated else []
    process = subprocess.Popen(
        [*prefix, sys.executable, "-I", str(_RUNNER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(json.dumps(document).encode(), timeout=limits.wall_seconds)
    except subprocess.TimeoutExpired:
        output = None
    finally:
        _end(process)
    if output is not None and output.decode(errors="replace") == token:
        return ProgramResult(passed=True)
    killed = output is None or process.returncode == signal.SIGXCPU  # the runner's exit status at the limit
    return ProgramResult(passed=False, reason="ended by a limit" if killed else "failed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group, and wait for the process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
