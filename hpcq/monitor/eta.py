"""Estimate of the remaining time of a run from its rate so far. Requests differ in cost, so it is approximate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.monitor.status import RunStatus, UnitStatus


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Committed requests.
        total: All requests. Units that have not started count with the mean of the others; None if none has started.
        seconds_left: Estimated seconds until all requests are committed; None until the first one is.
    """

    done: int
    total: int | None
    seconds_left: float | None


def unit_seconds_left(unit: UnitStatus, now: datetime | None = None) -> float | None:
    """Estimate the seconds left of a running evaluation from the rate of its attempt; None if unknown."""
    if unit.running_since is None or not unit.total or unit.done is None:
        return None
    elapsed = ((now or datetime.now(UTC)) - datetime.fromisoformat(unit.running_since)).total_seconds()
    answered = unit.done - unit.restored
    return elapsed * (unit.total - unit.done) / answered if answered > 0 else None


def run_progress(status: RunStatus, now: datetime | None = None) -> Progress:
    """Estimate the progress of the run, assuming that waiting units run at the total rate of the running ones."""
    units = [unit for unit in status.units if unit.kind == UnitKind.EVALUATE]
    totals = [unit.total for unit in units if unit.total is not None]
    done = sum(unit.done or 0 for unit in units)
    if not totals:
        return Progress(done=done, total=None, seconds_left=None)
    mean = sum(totals) / len(totals)
    total = round(sum(mean if unit.total is None else unit.total for unit in units))
    return Progress(done=done, total=total, seconds_left=_seconds_left(units, mean, now))


def _seconds_left(units: Sequence[UnitStatus], mean: float, now: datetime | None) -> float | None:
    now = now or datetime.now(UTC)
    running = [unit for unit in units if unit.state is UnitState.RUNNING]
    lefts = [left for unit in running if (left := unit_seconds_left(unit, now)) is not None]
    if not lefts:
        return None
    rate = sum(
        (unit.total - unit.done) / left
        for unit in running
        if unit.total and unit.done is not None and (left := unit_seconds_left(unit, now))
    )
    if not rate:
        return max(lefts)
    unfinished = [unit for unit in units if unit.state is not UnitState.DONE]
    missing = sum((mean if unit.total is None else unit.total) - (unit.done or 0) for unit in unfinished)
    return max(*lefts, missing / rate)
