"""Processes on this host: who one is, beyond its number, and how it is asked to stop. Knows Linux's /proc."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

POLL_INTERVAL_S = 0.1
_START_TIME = 19
"""Field 22 of /proc/PID/stat, counted after the command's name, which may hold blanks (proc(5))."""


def identity(pid: int) -> str | None:
    """Host, boot and start time: numbers of processes come again, this does not. None: there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = told.rpartition(")")[2].split()
    return None if state == "Z" else f"{socket.gethostname()} {boot} {pid} {fields[_START_TIME - 1]}"


def is_alive(process: str) -> bool:
    """Whether the process of that identity is there, on this host."""
    pid = _pid(process)
    return pid is not None and identity(pid) == process


def send(process: str, number: signal.Signals) -> bool:
    """Send a signal to the process of that identity; False where it is not there or not ours."""
    pid = _pid(process)
    if pid is None or identity(pid) != process:
        return False
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def stop(process: str, patience_s: float) -> None:
    """Ask the process to leave by SIGTERM, and make it after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    if not send(process, signal.SIGTERM):
        return
    while is_alive(process):
        if time.monotonic() > deadline:
            send(process, signal.SIGKILL)
            return
        time.sleep(POLL_INTERVAL_S)


def _pid(process: str) -> int | None:
    parts = process.split()
    return int(parts[-2]) if len(parts) > 2 and parts[-2].isdigit() else None  # noqa: PLR2004 (host, boot, pid, start)
