"""Stop processes of a run on this machine: single units, the command that runs them, or orphaned units."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive, send_signal, terminate
from hpcq.core.run_lock import is_locked, lock_owner

STOP_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.2


def interrupt_units(layout: RunLayout, units: Collection[str]) -> list[str]:
    """Send SIGTERM to the attempts of `units` that run on this machine; return the ids of these units."""
    return sorted(
        record.unit
        for record in _running_attempts(layout)
        if record.unit in units and send_signal(record.process, signal.SIGTERM)
    )


def interrupt_lock_owner(layout: RunLayout) -> bool:
    """Stop the command that runs the units and wait until it has released the run's lock; False if there is none.

    Raises:
        SetupError: The command runs on another host, or does not stop.
    """
    owner = lock_owner(layout)
    if owner is None:
        return False
    if not send_signal(owner, signal.SIGTERM):
        raise SetupError(
            f"The command that runs '{layout.name}' is on host {owner.partition(' ')[0]}: cancel the run there."
        )
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_locked(layout):
        if time.monotonic() > deadline:
            raise SetupError(
                f"The command that runs '{layout.name}' did not stop within {STOP_TIMEOUT_S:g} s: wait until it exits."
            )
        time.sleep(POLL_INTERVAL_S)
    return True


def stop_orphans(layout: RunLayout) -> list[str]:
    """Stop units on this machine whose command was killed and return their ids. The caller must own the run's lock."""
    orphans = _running_attempts(layout)
    for record in orphans:
        terminate(record.process, STOP_TIMEOUT_S)
    return [record.unit for record in orphans]


def _running_attempts(layout: RunLayout) -> list[AttemptRecord]:
    """Return the attempts of the local launcher that run on this machine."""
    records = [record for attempts in read_attempts(layout.attempts).values() for record in attempts]
    return [
        record
        for record in records
        if record.outcome is Outcome.RUNNING and record.launcher is Launcher.LOCAL and is_alive(record.process)
    ]
