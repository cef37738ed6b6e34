"""Waiting for what Slurm and the attempts' records say, with deadlines that a slow machine keeps, too."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.paths import RunLayout
from hpcq.core.work import State
from hpcq.slurm import squeue
from hpcq.slurm.squeue import JobState

INTERVAL_S = 0.3
_LIVE = (State.PENDING, State.RUNNING)


def wait_for(what: str, holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Return as soon as `holds` does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"After {timeout_s:g} s still not: {what}.", pytrace=False)
        time.sleep(INTERVAL_S)


def ended(layout: RunLayout, timeout_s: float = 240.0) -> dict[tuple[str, int], JobState]:
    """What Slurm says of the run when nothing of it waits or runs any more."""
    deadline = time.monotonic() + timeout_s
    while True:
        states = squeue.poll(layout.name)
        if states and all(job.state not in _LIVE for job in states.values()):
            return states
        if time.monotonic() > deadline:
            pytest.fail(f"The run has not ended after {timeout_s:g} s: {states}", pytrace=False)
        time.sleep(INTERVAL_S)


def attempts_of(layout: RunLayout, unit: str) -> list[AttemptRecord]:
    """The unit's attempts so far, in order."""
    return read_attempts(layout.attempts).get(unit, [])


def wait_for_states(layout: RunLayout, state: State, number: int, timeout_s: float = 60.0) -> None:
    """Return as soon as Slurm says of `number` elements that they are in that state."""

    def holds() -> bool:
        return sum(job.state is state for job in squeue.poll(layout.name).values()) >= number

    wait_for(f"{number} elements are {state}", holds, timeout_s)
