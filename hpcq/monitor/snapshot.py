"""One picture of a run: every unit's state, progress, attempts and reason, as `status` shows it.

Joins three sources that others read: the plan's document, the attempts, and the scheduler's answer (by unit). Asks no
scheduler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from hpcq.core.attempts import AttemptRecord, last_words, read_attempts
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive
from hpcq.core.run_lock import is_held
from hpcq.core.work import Kind, State
from hpcq.monitor.on_disk import committed_units
from hpcq.store import count_rows

LIVE = (State.RUNNING, State.PENDING)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """What the scheduler says of a unit that was handed to it. state None: it knows the job no more.

    log: what the job printed before the unit began.
    """

    job_id: str
    state: State | None
    reason: str | None = None
    log: str | None = None


@dataclass(frozen=True, kw_only=True)
class UnitStatus:
    """One unit.

    done, total: requests committed and requests in all (None: not counted yet, or not a matter of requests). seconds:
    spent in attempts that have ended. running_since, restored: when the attempt that runs began, and what the store
    held then. failure: the class of its last attempt's end (`hpcq.core.failures.Failure`). decision: what was made of it
    (`hpcq.launch.recovery.retry_policy.Action`). asked_tokens, computed_tokens: of log-likelihood requests, each in full, and what
    was computed of them, in all attempts that have said so, which they do at their end (None: none has).
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
    failure: str | None = None
    decision: str | None = None
    asked_tokens: int | None = None
    computed_tokens: int | None = None

    @property
    def is_given_up(self) -> bool:
        """It is tried again only by `hpcq resume --failed`."""
        return self.state is State.FAILED and self.decision == "give up"

    @property
    def is_stopped(self) -> bool:
        """It is tried again only when somebody asks; so is what somebody has cancelled."""
        return self.state in (State.FAILED, State.CANCELLED) and self.decision in ("stop", "give up")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The whole run. held: a command is working on it."""

    run: str
    units: tuple[UnitStatus, ...]
    held: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Units by state, states that no unit has left out."""
        return dict(Counter(str(unit.state) for unit in self.units))

    @property
    def state(self) -> State:
        """Running and pending come before failed: a run that goes on is not over."""
        found = {unit.state for unit in self.units}
        if self.held and found != {State.DONE}:
            return State.RUNNING
        for state in (State.RUNNING, State.PENDING, State.FAILED, State.CANCELLED, State.WAITING):
            if state in found:
                return state
        return State.DONE

    @property
    def asked_tokens(self) -> int | None:
        """Of all units that are known to have asked for any."""
        return _sum(unit.asked_tokens for unit in self.units)

    @property
    def computed_tokens(self) -> int | None:
        """Of all units that are known to have computed any."""
        return _sum(unit.computed_tokens for unit in self.units)

    def as_json(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return {
            "schema": 1,
            "run": self.run,
            "state": str(self.state),
            "counts": self.counts,
            "asked_tokens": self.asked_tokens,
            "computed_tokens": self.computed_tokens,
            "units": [asdict(unit) for unit in self.units],
        }


def take_picture(layout: RunLayout, units: Sequence[Mapping[str, Any]], jobs: Mapping[str, JobView]) -> RunStatus:
    """The state of `units` (rows of the plan's document); `jobs` is what the scheduler says, by unit id."""
    committed = committed_units(layout, units)
    attempts = read_attempts(layout.attempts)
    seen: dict[str, UnitStatus] = {}
    for unit in units:
        name = unit["id"]
        status = _unit_status(layout, unit, attempts.get(name, []), jobs.get(name), is_committed=name in committed)
        seen[name] = _held_up(status, [seen[needed] for needed in unit["depends_on"] if needed in seen])
    return RunStatus(run=layout.name, units=tuple(seen.values()), held=is_held(layout))


def _held_up(status: UnitStatus, needed: Sequence[UnitStatus]) -> UnitStatus:
    """An evaluation that never began is cancelled when its quantization fails, whoever was to run it."""
    broken = [unit for unit in needed if unit.state in (State.FAILED, State.CANCELLED)]
    if status.kind != Kind.EVALUATE or status.attempts or status.state in (State.DONE, *LIVE) or not broken:
        return status
    reason = f"{broken[0].id} {broken[0].state}: {broken[0].reason}"
    return replace(status, state=State.CANCELLED, reason=reason)


def _unit_status(
    layout: RunLayout,
    unit: Mapping[str, Any],
    attempts: list[AttemptRecord],
    job: JobView | None,
    *,
    is_committed: bool,
) -> UnitStatus:
    last = attempts[-1] if attempts else None
    # A merge's job lives on while it sees to what is missing, and may hand that over.
    lives_on = unit["kind"] == Kind.MERGE and job is not None and job.state in LIVE
    state, reason = (State.DONE, None) if is_committed and not lives_on else _state(last, job)
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
        failure=last.failure if last else None,
        decision=last.decision if last else None,
        asked_tokens=_sum(attempt.facts.get("asked_tokens") for attempt in attempts),
        computed_tokens=_sum(attempt.facts.get("computed_tokens") for attempt in attempts),
    )


def _answered(layout: RunLayout, last: AttemptRecord | None, *, is_committed: bool) -> int:
    """Requests answered: those that the store held when the last attempt began, and what this attempt committed."""
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
    if last and last.launcher == "local" and last.outcome == "running" and is_alive(last.process):
        return State.RUNNING, None
    if job and job.state is State.CANCELLED:
        return State.CANCELLED, job.reason
    return _ended(last, job)


def _ended(last: AttemptRecord | None, job: JobView | None) -> tuple[State, str | None]:
    """Of a unit that nobody works on."""
    match last.outcome if last else None:
        case "done":
            return State.WAITING, "its result is out of date or was removed: `hpcq resume` makes it again"
        case "failed":
            return State.FAILED, last.reason if last else None
        case "interrupted":
            return State.CANCELLED, (last.reason if last else None) or "interrupted before it was done"
        case "running":
            return State.FAILED, _vanished(last, job)
    return (State.FAILED, _vanished(last, job)) if job else (State.WAITING, None)


def _vanished(last: AttemptRecord | None, job: JobView | None) -> str:
    number = job.job_id if job else (last.job_id if last else "")
    said = f" ({job.reason})" if job and job.reason else ""
    if last is None:
        return f"job {number} ended before the unit began{said}: {last_words(job.log if job else None)}"
    return f"job {number} ended on {last.node} without a word: killed, or out of memory or time{said}"


def _seconds(attempts: list[AttemptRecord]) -> float | None:
    """Time spent in attempts that have ended."""
    spans = [
        (datetime.fromisoformat(item.end) - datetime.fromisoformat(item.start)).total_seconds()
        for item in attempts
        if item.end
    ]
    return round(sum(spans), 1) if spans else None


def _sum(counts: Iterable[int | None]) -> int | None:
    """Of what is known; None where nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
