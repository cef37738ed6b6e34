"""Wait for states of Slurm and of attempt records. The timeouts only end a wait that would last forever."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.paths import RunLayout
from hpcq.core.work import UnitState
from hpcq.slurm import squeue
from hpcq.slurm.jobs import SlurmJob

INTERVAL_S = 0.3
TIMEOUT_S = 600.0
_LIVE = (UnitState.PENDING, UnitState.RUNNING)


def wait_for(description: str, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Return as soon as `condition` is true; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"After {timeout_s:g} s still not: {description}.", pytrace=False)
        time.sleep(INTERVAL_S)


def wait_until_ended(layout: RunLayout, timeout_s: float = TIMEOUT_S) -> dict[str, SlurmJob]:
    """Wait until no job of the run is pending or running, and return the states that Slurm reports."""
    deadline = time.monotonic() + timeout_s
    while True:
        states = squeue.poll(layout.name)
        if states and all(job.state.unit_state not in _LIVE for job in states.values()):
            return states
        if time.monotonic() > deadline:
            pytest.fail(f"The run has not ended after {timeout_s:g} s: {states}", pytrace=False)
        time.sleep(INTERVAL_S)


def attempts_of(layout: RunLayout, unit: str) -> list[AttemptRecord]:
    """Return the unit's attempts in order."""
    return read_attempts(layout.attempts).get(unit, [])


def wait_for_states(layout: RunLayout, state: UnitState, count: int) -> None:
    """Return as soon as Slurm reports at least `count` elements in that state."""

    def is_reached() -> bool:
        return sum(job.state.unit_state is state for job in squeue.poll(layout.name).values()) >= count

    wait_for(f"{count} elements are {state}", is_reached)
