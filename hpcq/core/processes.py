"""Processes on this host: an identity that outlasts the reuse of process ids, signals, termination of process trees.

`identity` reads /proc, and psutil does the rest. psutil is imported where it is used, because
`hpcq.core.environments` needs the identity of its process before any package is installed. Identities are stored and
compared by other processes: they contain the start time in ticks since boot, because psutil's `create_time` is relative
to the wall clock and changes when the clock is set.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

POLL_INTERVAL_S = 0.1
_START_TIME = 19
"""Field 22 of /proc/PID/stat, counted from the field after the command name, which may contain spaces (proc(5))."""


def identity(pid: int) -> str | None:
    """Return host, boot, process id and start time, which together are unique; None if there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    return None if state == "Z" else f"{socket.gethostname()} {boot} {pid} {fields[_START_TIME - 1]}"


def is_alive(process: str) -> bool:
    """Return whether the process with that identity is running on this host."""
    pid = _pid(process)
    return pid is not None and identity(pid) == process


def send_signal(process: str, number: signal.Signals) -> bool:
    """Send a signal to the process with that identity; return False if it does not exist or belongs to another user."""
    pid = _pid(process)
    found = None if pid is None else find(pid)
    return found is not None and is_alive(process) and signal_process(found, number)


def terminate(process: str, timeout_s: float) -> None:
    """Send SIGTERM to the process; if it is still running after `timeout_s` seconds, kill it and its descendants."""
    pid = _pid(process)
    found = None if pid is None else find(pid)
    if found is not None and send_signal(process, signal.SIGTERM):
        for survivor in wait_for_exit([found], timeout_s):
            kill_tree(survivor)


def find(pid: int) -> psutil.Process | None:
    """Return the process; None if it does not exist. Later signals reach it only if its id was not reused."""
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def signal_process(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal; return False if the process has exited or belongs to another user."""
    import psutil

    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def wait_for_exit(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until all processes have exited; return those that are still running after `timeout_s` seconds.

    A zombie has exited. psutil.wait_procs waits until it is reaped, and reaps children of this process, whose exit code
    their `Popen` object would then not know.
    """
    deadline_s = time.monotonic() + timeout_s
    while running := [process for process in processes if _is_running(process)]:
        if time.monotonic() > deadline_s:
            return running
        time.sleep(min(POLL_INTERVAL_S, timeout_s))
    return []


def kill_tree(process: psutil.Process) -> None:
    """Kill the process and its descendants."""
    import psutil

    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = process.children(recursive=True)
    for member in (process, *descendants):
        signal_process(member, signal.SIGKILL)


def _is_running(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _pid(process: str) -> int | None:
    parts = process.split()
    return int(parts[-2]) if len(parts) > 2 and parts[-2].isdigit() else None  # noqa: PLR2004 (host, boot, pid, start)
