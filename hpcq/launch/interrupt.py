"""Stops what a run does on this machine, single units or all of it, by signals alone; kills nothing."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection
from pathlib import Path

from hpcq.attempts import read_attempts
from hpcq.errors import EnvironmentFault
from hpcq.layout import RunLayout


def interrupt_units(layout: RunLayout, units: Collection[str]) -> list[str]:
    """Ask the attempts of `units` that run on this host to leave; ids of those asked."""
    asked = []
    for unit, attempts in read_attempts(layout.attempts).items():
        last = attempts[-1]
        if unit in units and last.outcome == "running" and last.node == socket.gethostname() and signal_to(last.pid):
            asked.append(unit)
    return sorted(asked)


def interrupt_holder(held: Path) -> bool:
    """Press Ctrl-C for the command that holds the run by the lock file `held`; False where none does.

    Raises:
        EnvironmentFault: it runs on another host.
    """
    host, _, pid = held.read_text(encoding="utf-8").strip().partition(" ") if held.is_file() else ("", "", "")
    if not pid:
        return False
    if host != socket.gethostname():
        raise EnvironmentFault(f"The run is worked on from {host}: cancel it there.")
    return signal_to(int(pid), signal.SIGINT)


def signal_to(pid: int, number: signal.Signals = signal.SIGTERM) -> bool:
    """Send a signal; False where there is no such process of ours."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
