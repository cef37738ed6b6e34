"""Stops what a run does on this machine: single units, the command that runs them, or units whose command is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive, send, stop
from hpcq.core.run_lock import holder, is_held

PATIENCE_S = 30.0
POLL_INTERVAL_S = 0.2


def interrupt_units(layout: RunLayout, units: Collection[str]) -> list[str]:
    """Ask the attempts of `units` that run on this machine to leave; ids of those asked."""
    return sorted(
        record.unit for record in _alive(layout) if record.unit in units and send(record.process, signal.SIGTERM)
    )


def interrupt_holder(layout: RunLayout) -> bool:
    """Stop the command that runs the units, and wait until it has let go of the run; False where there is none.

    Raises:
        SetupError: it runs on another host, or does not stop.
    """
    held_by = holder(layout)
    if held_by is None:
        return False
    if not send(held_by, signal.SIGTERM):
        raise SetupError(f"The run is worked on from {held_by.partition(' ')[0]}: cancel it there.")
    deadline = time.monotonic() + PATIENCE_S
    while is_held(layout):
        if time.monotonic() > deadline:
            raise SetupError(f"The command that runs '{layout.name}' was told to stop and goes on: wait for it.")
        time.sleep(POLL_INTERVAL_S)
    return True


def stop_orphans(layout: RunLayout) -> list[str]:
    """Stop units of this machine whose command was killed; only the holder of the run may say so. Ids of the units."""
    orphans = _alive(layout)
    for record in orphans:
        stop(record.process, PATIENCE_S)
    return [record.unit for record in orphans]


def _alive(layout: RunLayout) -> list[AttemptRecord]:
    """Attempts that run on this machine and that Slurm knows nothing of."""
    records = [record for attempts in read_attempts(layout.attempts).values() for record in attempts]
    return [
        record
        for record in records
        if record.outcome == "running" and record.launcher == "local" and is_alive(record.process)
    ]
