"""Run functions in forked processes under strace, which counts system calls and injects SIGKILL or errors at one."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from hpcq.core.errors import StorageError

MAX_PARALLEL = 6
WRITE_CALLS = (
    "openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "close", "rename", "renameat", "renameat2",
    "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
READ_CALLS = ("stat", "lstat", "fstat", "newfstatat", "statx", "getdents64", "read")
# Lock calls are traced only to check that there are none. '?': not an error if the architecture does not have the call.
_TRACED_CALLS = ",".join(f"?{call}" for call in (*WRITE_CALLS, *READ_CALLS, "flock", "fcntl"))
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, -1

Acknowledge = Callable[[str], None]
"""Sends a line to the test: what the work has committed so far."""
Work = Callable[[Acknowledge], None]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Fault at a system call.

    Attributes:
        call: Name of the system call.
        when: Which calls of this name, in strace's syntax: `3` is the third, `1+` are all.
        effect: In strace's syntax, e.g. signal=KILL or error=EIO.
    """

    call: str
    when: str
    effect: str

    def __str__(self) -> str:
        return f"{self.call}:{self.effect}:when={self.when}"


@dataclass(frozen=True, kw_only=True)
class TracedResult:
    """Result of a traced process.

    Attributes:
        acknowledged: Lines that it acknowledged.
        is_killed: Whether a signal terminated it.
        storage_error: Message of its StorageError.
        other_error: Any other exception that it raised.
        calls: Number of system calls by name, of its first thread.
        trace: Output of strace.
    """

    acknowledged: tuple[str, ...]
    is_killed: bool
    storage_error: str | None
    other_error: str | None
    calls: collections.Counter[str]
    trace: str

    @property
    def is_done(self) -> bool:
        """Whether the function returned."""
        return not (self.is_killed or self.storage_error or self.other_error)


def run_traced(runs: Iterable[tuple[Work, Injection | None]], folder: Path) -> Iterator[TracedResult]:
    """Yield the result of each run in order; up to MAX_PARALLEL run concurrently. Traces are written to `folder`."""
    runs = iter(runs)
    while batch := list(itertools.islice(runs, MAX_PARALLEL)):
        with contextlib.ExitStack() as stack:
            started = [
                stack.enter_context(_TracedProcess(*run, folder / f"trace.{index}")) for index, run in enumerate(batch)
            ]
            for process in started:
                process.wait_for_strace()
            for process in started:
                process.start_work()
            yield from [process.result() for process in started]


class _TracedProcess:
    """A forked process that waits until strace is attached, and its strace."""

    def __init__(self, work: Work, injection: Injection | None, trace: Path) -> None:
        self._trace = trace
        parent, child = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            parent.close()
            _run_traced_work(work, child)
        child.close()
        self._socket = parent
        inject = ["-e", f"inject={injection}"] if injection else []
        command = ["strace", "-f", "-p", str(self._pid), "-o", str(trace), "-e", f"trace={_TRACED_CALLS}", *inject]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        self._strace.wait()
        self._strace.stderr.close()

    def wait_for_strace(self) -> None:
        line = self._strace.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"the right to trace a process is not on this machine: {line.strip()}")

    def start_work(self) -> None:
        self._socket.sendall(b"go\n")

    def result(self) -> TracedResult:
        with self._socket.makefile(encoding="utf-8") as lines:
            messages = [line.rstrip("\n") for line in lines]
        _, status = os.waitpid(self._pid, 0)
        self._strace.wait()
        trace = self._trace.read_text(encoding="utf-8", errors="replace")
        parts = [line.split(maxsplit=1) for line in trace.splitlines()]
        own_calls = [text.partition("(")[0] for pid, text in parts if pid == str(self._pid) and "(" in text]
        errors = {kind: next((line[2:] for line in messages if line.startswith(kind)), None) for kind in ("S ", "O ")}
        return TracedResult(
            acknowledged=tuple(line[2:] for line in messages if line.startswith("A ")),
            is_killed=os.WIFSIGNALED(status),
            storage_error=errors["S "],
            other_error=errors["O "],
            calls=collections.Counter(own_calls),
            trace=trace,
        )


def _run_traced_work(work: Work, parent: socket.socket) -> None:
    """Run in the child. Messages are sent by sendto(2), which is not one of the traced calls."""
    # If Yama restricts tracing to descendants: strace is a sibling.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    status = 70
    try:
        parent.recv(3)
        work(lambda line: parent.sendall(f"A {line}\n".encode()))
        status = 0
    except StorageError as error:
        parent.sendall(f"S {str(error)!r}\n".encode())
    except BaseException as error:  # noqa: BLE001 - reported to the parent, which checks it
        parent.sendall(f"O {error!r}\n".encode())
    finally:
        os._exit(status)


def require_strace() -> None:
    """Skip the test if strace is not installed. In continuous integration, conftest.py fails it instead."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
