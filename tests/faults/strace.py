"""Runs a function in a process of its own under strace, which counts its system calls, or kills or refuses at one.

Knows processes and strace; nothing of what the function does.
"""

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

AT_ONCE = 6
CHANGING = (
    "openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "close", "rename", "renameat", "renameat2",
    "mkdir", "mkdirat", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
LOOKING = ("stat", "lstat", "fstat", "newfstatat", "statx", "getdents64", "read")
# Locks are watched only to see that there are none. Not every architecture has every call: strace passes over those
# that are marked.
_SET = ",".join(f"?{call}" for call in (*CHANGING, *LOOKING, "flock", "fcntl"))
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, -1

Say = Callable[[str], None]
Work = Callable[[Say], None]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What happens at call number `when` of its kind: `what` is strace's word, such as signal=KILL or error=EIO."""

    call: str
    when: str
    what: str

    def __str__(self) -> str:
        return f"{self.call}:{self.what}:when={self.when}"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What became of a run: what it said, line by line; its StorageError's sentence; anything else that it raised."""

    said: tuple[str, ...]
    is_killed: bool
    fault: str | None
    raised: str | None
    calls: collections.Counter[str]
    trace: str

    @property
    def is_done(self) -> bool:
        """The function returned."""
        return not (self.is_killed or self.fault or self.raised)


def run_all(runs: Iterable[tuple[Work, Injection | None]], folder: Path) -> Iterator[Ending]:
    """The ending of every run, in order; several go on at once. `folder` is for the traces."""
    runs = iter(runs)
    while batch := list(itertools.islice(runs, AT_ONCE)):
        with contextlib.ExitStack() as stack:
            started = [stack.enter_context(_Traced(*run, folder / f"trace.{at}")) for at, run in enumerate(batch)]
            for traced in started:
                traced.wait_for_strace()
            for traced in started:
                traced.go()
            yield from [traced.ending() for traced in started]


class _Traced:
    """A forked process that waits until strace watches it, and strace."""

    def __init__(self, work: Work, injection: Injection | None, trace: Path) -> None:
        self._trace = trace
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _be_traced(work, theirs)
        theirs.close()
        self._socket = ours
        inject = ["-e", f"inject={injection}"] if injection else []
        command = ["strace", "-f", "-p", str(self._pid), "-o", str(trace), "-e", f"trace={_SET}", *inject]
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

    def go(self) -> None:
        self._socket.sendall(b"go\n")

    def ending(self) -> Ending:
        with self._socket.makefile(encoding="utf-8") as lines:
            said = [line.rstrip("\n") for line in lines]
        _, status = os.waitpid(self._pid, 0)
        self._strace.wait()
        trace = self._trace.read_text(encoding="utf-8", errors="replace")
        parts = [line.split(maxsplit=1) for line in trace.splitlines()]
        own = [text.partition("(")[0] for pid, text in parts if pid == str(self._pid) and "(" in text]
        word = {kind: next((line[2:] for line in said if line.startswith(kind)), None) for kind in ("F ", "R ")}
        return Ending(
            said=tuple(line[2:] for line in said if line.startswith("S ")),
            is_killed=os.WIFSIGNALED(status),
            fault=word["F "],
            raised=word["R "],
            calls=collections.Counter(own),
            trace=trace,
        )


def _be_traced(work: Work, parent: socket.socket) -> None:
    """In the child: the words go by sendto(2), which is not among the calls that are watched."""
    # Where Yama restricts tracing to descendants: strace is a sibling.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    status = 70
    try:
        parent.recv(3)
        work(lambda word: parent.sendall(f"S {word}\n".encode()))
        status = 0
    except StorageError as fault:
        parent.sendall(f"F {str(fault)!r}\n".encode())
    except BaseException as error:  # noqa: BLE001 - the parent judges
        parent.sendall(f"R {error!r}\n".encode())
    finally:
        os._exit(status)


def need_strace() -> None:
    """Skip, which continuous integration does not allow, where there is no strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
