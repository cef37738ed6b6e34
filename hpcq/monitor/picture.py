"""One picture of a run: every unit's state, progress, attempts and reason, as `status` shows it.

Joins three sources that others read: the plan's document, the attempts, and the scheduler's answer (by unit). Asks no
scheduler.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from hpcq.attempts import AttemptRecord, read_attempts
from hpcq.layout import RunLayout
from hpcq.monitor.facts import committed_units
from hpcq.units import Kind, State

LIVE = (State.RUNNING, State.PENDING)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """What the scheduler says of a unit that was handed to it. state None: it knows the job no more."""

    job_id: str
    state: State | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class UnitStatus:
    """One unit.

    done, total: requests committed and requests in all (None: not counted yet, or not a matter of requests). seconds:
    spent in attempts that have ended. running_since, restored: when the attempt that runs began, and what the store
    held then. given_up: its last attempt said why it failed, so that another would fail too.
    """

    id: str
    kind: str
    variant: str | None
    state: State
    done: int | None
    total: int | None
    job_id: str | None
    attempts: int
    reason: str | None
    phase: str | None
    seconds: float | None
    running_since: str | None = None
    restored: int = 0
    given_up: bool = False


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The whole run."""

    run: str
    units: tuple[UnitStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Units by state, states that no unit has left out."""
        return dict(Counter(str(unit.state) for unit in self.units))

    @property
    def state(self) -> State:
        """Running and pending come before failed: a run that goes on is not over."""
        found = {unit.state for unit in self.units}
        for state in (State.RUNNING, State.PENDING, State.FAILED, State.CANCELLED, State.WAITING):
            if state in found:
                return state
        return State.DONE

    def as_json(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return {
            "schema": 1,
            "run": self.run,
            "state": str(self.state),
            "counts": self.counts,
            "units": [asdict(unit) for unit in self.units],
        }


def take_picture(layout: RunLayout, units: Sequence[Mapping[str, Any]], jobs: Mapping[str, JobView]) -> RunStatus:
    """The state of `units` (rows of the plan's document); `jobs` is what the scheduler says, by unit id."""
    committed = committed_units(layout, units)
    attempts = read_attempts(layout.attempts)
    return RunStatus(
        run=layout.name,
        units=tuple(
            _unit_status(
                layout, unit, attempts.get(unit["id"], []), jobs.get(unit["id"]), is_committed=unit["id"] in committed
            )
            for unit in units
        ),
    )


def _unit_status(
    layout: RunLayout,
    unit: Mapping[str, Any],
    attempts: list[AttemptRecord],
    job: JobView | None,
    *,
    is_committed: bool,
) -> UnitStatus:
    last = attempts[-1] if attempts else None
    state, reason = (State.DONE, None) if is_committed else _state(last, job)
    return UnitStatus(
        id=unit["id"],
        kind=unit["kind"],
        variant=unit["variant"],
        state=state,
        done=_answered(layout, last, is_committed=is_committed) if unit["kind"] == Kind.EVALUATE else None,
        total=last.total if last else None,
        job_id=job.job_id if job else (last.job_id if last else None),
        attempts=len(attempts),
        reason=reason,
        phase=last.phase if last and state is State.RUNNING else None,
        seconds=_seconds(attempts),
        running_since=last.start if last and state is State.RUNNING else None,
        restored=(last.restored or 0) if last else 0,
        given_up=state is State.FAILED and last is not None and last.outcome == "failed",
    )


def _answered(layout: RunLayout, last: AttemptRecord | None, *, is_committed: bool) -> int:
    """Requests answered: those that the store held when the last attempt began, and what this attempt committed."""
    from hpcq.store import count_rows

    if last is None or last.total is None:
        return 0
    if is_committed:
        return last.total
    committed = count_rows(layout.unit_segments(last.unit), last.attempt)
    return min(last.total, (last.restored or 0) + committed)


def _state(last: AttemptRecord | None, job: JobView | None) -> tuple[State, str | None]:
    """Of a unit whose result is not on disk: the queue's word first, then the last attempt's."""
    if job and job.state in LIVE:
        return (State.RUNNING, None) if job.state is State.RUNNING else (State.PENDING, job.reason)
    if last and last.outcome == "running" and job is None and _is_alive(last):
        return State.RUNNING, None
    if last and last.outcome in ("failed", "interrupted"):
        return State.FAILED, last.reason or "interrupted before it was done"
    if job and job.state is State.CANCELLED:
        return State.CANCELLED, job.reason
    if last or job:
        return State.FAILED, _vanished(last, job)
    return State.WAITING, None


def _vanished(last: AttemptRecord | None, job: JobView | None) -> str:
    number = job.job_id if job else (last.job_id if last else "")
    where = f" on {last.node}" if last else ""
    said = f" ({job.reason})" if job and job.reason else ""
    return f"job {number} ended{where} without a word: killed, or out of memory or time{said}"


def _is_alive(record: AttemptRecord) -> bool:
    """Whether an attempt on this very host is still a process."""
    if record.node != socket.gethostname():
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _seconds(attempts: list[AttemptRecord]) -> float | None:
    """Time spent in attempts that have ended."""
    spans = [
        (datetime.fromisoformat(item.end) - datetime.fromisoformat(item.start)).total_seconds()
        for item in attempts
        if item.end
    ]
    return round(sum(spans), 1) if spans else None
