"""Processes on this host (Linux): an identity that survives reuse of process ids, signals, termination."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

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
    if pid is None or identity(pid) != process:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def terminate(process: str, timeout_s: float) -> None:
    """Send SIGTERM to the process, and SIGKILL if it is still running after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    if not send_signal(process, signal.SIGTERM):
        return
    while is_alive(process):
        if time.monotonic() > deadline:
            send_signal(process, signal.SIGKILL)
            return
        time.sleep(POLL_INTERVAL_S)


def _pid(process: str) -> int | None:
    parts = process.split()
    return int(parts[-2]) if len(parts) > 2 and parts[-2].isdigit() else None  # noqa: PLR2004 (host, boot, pid, start)
