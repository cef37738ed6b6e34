"""Status of a run: state, progress, attempts and failure reason of every unit, as `hpcq status` shows them.

Combines the units of the plan, the attempt records, and the state of the units' jobs. The caller queries Slurm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, field, replace
from datetime import datetime
from typing import Any

from hpcq.core.attempts import AttemptRecord, last_log_line, read_attempts
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Action, Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive
from hpcq.core.run_lock import is_locked
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.monitor.completed import completed_units
from hpcq.monitor.pending_warnings import pending_warnings
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.monitor.units import Unit
from hpcq.store import count_rows

ACTIVE_STATES = (UnitState.RUNNING, UnitState.PENDING)


@dataclass(frozen=True, kw_only=True)
class UnitStatus:
    """Status of one unit.

    Attributes:
        id: Id of the unit.
        kind: Kind of work.
        variant: Id of the variant; None for the merge.
        state: State of the unit.
        done: Committed requests; None for units without requests.
        total: All requests; None until they are counted, and for units without requests.
        job_id: Id of the last job, or of the local attempt.
        attempts: Number of attempts.
        reason: Why the unit has failed, or Slurm's reason why it is pending.
        phase: What the running attempt is doing.
        seconds: Time spent in ended attempts.
        running_since: Start of the running attempt, in UTC, ISO 8601.
        restored: Requests already in the store when the last attempt started.
        failure: Class of the last failure.
        decision: What follows from it.
        asked_tokens: Tokens of all log-likelihood requests, without prefix sharing. Attempts report it when they end;
            None if none has reported.
        computed_tokens: Tokens computed for these requests; None if no attempt has reported.
    """

    id: str
    kind: UnitKind
    variant: str | None
    state: UnitState
    done: int | None
    total: int | None
    job_id: str | None
    attempts: int
    reason: str | None
    phase: str | None
    seconds: float | None
    running_since: str | None = None
    restored: int = 0
    failure: Failure | None = None
    decision: Action | None = None
    asked_tokens: int | None = None
    computed_tokens: int | None = None

    @property
    def has_failed_permanently(self) -> bool:
        """Whether only `hpcq resume --failed` runs the unit again."""
        return self.state is UnitState.FAILED and self.decision is Action.FAIL

    @property
    def is_on_hold(self) -> bool:
        """Whether the unit runs again only on the user's request. Includes cancelled units."""
        has_ended = self.state in (UnitState.FAILED, UnitState.CANCELLED)
        return has_ended and self.decision is not None and not self.decision.is_retry


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Status of a run.

    Attributes:
        run: Name of the run.
        units: Status of each unit, in the order of the plan.
        is_locked: Whether a command is working on the run.
        slurm_error: Why Slurm did not respond; the states of units without a result are then as last recorded. None: it
            responded, or was not queried.
        warnings: Pending jobs that cannot start, each with the key of the profile to correct.
    """

    run: str
    units: tuple[UnitStatus, ...] = field(repr=False)
    is_locked: bool = False
    slurm_error: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of units per state, without states that no unit has."""
        return dict(Counter(str(unit.state) for unit in self.units))

    @property
    def state(self) -> UnitState:
        """State of the run. Running and pending units take precedence over failed ones: the run has not ended."""
        found = {unit.state for unit in self.units}
        if self.is_locked and found != {UnitState.DONE}:
            return UnitState.RUNNING
        for state in (UnitState.RUNNING, UnitState.PENDING, UnitState.FAILED, UnitState.CANCELLED, UnitState.WAITING):
            if state in found:
                return state
        return UnitState.DONE

    @property
    def may_be_active(self) -> bool:
        """Whether jobs or processes work on the run, or may: Slurm did not respond."""
        return self.state in ACTIVE_STATES or self.slurm_error is not None

    @property
    def asked_tokens(self) -> int | None:
        """Sum over all units that have reported it; None if none has."""
        return _sum_known(unit.asked_tokens for unit in self.units)

    @property
    def computed_tokens(self) -> int | None:
        """Sum over all units that have reported it; None if none has."""
        return _sum_known(unit.computed_tokens for unit in self.units)

    def as_json(self) -> dict[str, Any]:
        """Return the document of `status --json`."""
        return {
            "schema": 1,
            "run": self.run,
            "state": str(self.state),
            "counts": self.counts,
            "asked_tokens": self.asked_tokens,
            "computed_tokens": self.computed_tokens,
            "slurm_error": self.slurm_error,
            "warnings": list(self.warnings),
            "units": [asdict(unit) for unit in self.units],
        }


def run_status(
    layout: RunLayout,
    units: Sequence[Unit],
    jobs: Mapping[str, UnitJobStatus],
    *,
    slurm_error: str | None = None,
    completed: Collection[str] | None = None,
) -> RunStatus:
    """Determine the status of a run.

    Args:
        layout: Paths of the run.
        units: The units, in the order of the plan.
        jobs: State of the units' jobs in Slurm, by unit id; empty if Slurm was not queried.
        slurm_error: Why Slurm did not respond; None if it did, or was not queried.
        completed: `completed_units`, if the caller has read them after `jobs`.
    """
    completed = completed_units(layout, units) if completed is None else completed
    attempts = read_attempts(layout.attempts)
    statuses: dict[str, UnitStatus] = {}
    for unit in units:
        name = unit.id
        status = _unit_status(layout, unit, attempts.get(name, []), jobs.get(name), is_completed=name in completed)
        if slurm_error and status.state is not UnitState.DONE and _is_recorded_as_running(attempts.get(name, [])):
            status = replace(status, state=UnitState.RUNNING, reason="as last recorded")
        statuses[name] = _cancel_if_blocked(
            status, [statuses[needed] for needed in unit.depends_on if needed in statuses]
        )
    return RunStatus(
        run=layout.name,
        units=tuple(statuses.values()),
        is_locked=is_locked(layout),
        slurm_error=slurm_error,
        warnings=(*pending_warnings(layout.name, units, jobs), *_unknown_jobs(layout.name, statuses, attempts, jobs)),
    )


def _unknown_jobs(
    run: str,
    statuses: Mapping[str, UnitStatus],
    attempts: Mapping[str, Sequence[AttemptRecord]],
    jobs: Mapping[str, UnitJobStatus],
) -> list[str]:
    """Return a warning if Slurm knows no job of the run, although units have not recorded their end.

    It is not asked for its name: `status` is one call.
    """
    if any(job.job or job.cluster for job in jobs.values()):
        return []
    homes = {
        job.home
        for unit, job in jobs.items()
        if job.home
        and (unit in statuses and statuses[unit].state is not UnitState.DONE)
        and (not attempts.get(unit) or _is_recorded_as_running(attempts[unit]))
    }
    return [
        f"Slurm on this machine knows none of the run's jobs, which were submitted on cluster {home}. If this machine"
        f" belongs to another cluster, their states are unknown: run `hpcq status {run}` on a login node of {home}."
        for home in sorted(homes)
    ]


def _is_recorded_as_running(attempts: Sequence[AttemptRecord]) -> bool:
    """Whether the last attempt is a job of Slurm that has not recorded its end."""
    return bool(attempts) and attempts[-1].launcher is Launcher.SLURM and attempts[-1].outcome is Outcome.RUNNING


def _cancel_if_blocked(status: UnitStatus, dependencies: Sequence[UnitStatus]) -> UnitStatus:
    """Mark an evaluation that never started as cancelled if its quantization has failed or was cancelled."""
    failed = [unit for unit in dependencies if unit.state in (UnitState.FAILED, UnitState.CANCELLED)]
    if (
        status.kind != UnitKind.EVALUATE
        or status.attempts
        or status.state in (UnitState.DONE, *ACTIVE_STATES)
        or not failed
    ):
        return status
    reason = f"{failed[0].id} {failed[0].state}: {failed[0].reason}"
    return replace(status, state=UnitState.CANCELLED, reason=reason)


def _unit_status(
    layout: RunLayout,
    unit: Unit,
    attempts: list[AttemptRecord],
    job: UnitJobStatus | None,
    *,
    is_completed: bool,
) -> UnitStatus:
    last = attempts[-1] if attempts else None
    # The job of a merge stays active after the merge, while it submits missing units again.
    is_resubmitting = unit.kind is UnitKind.MERGE and job is not None and job.state in ACTIVE_STATES
    state, reason = (UnitState.DONE, None) if is_completed and not is_resubmitting else _state(last, job)
    return UnitStatus(
        id=unit.id,
        kind=unit.kind,
        variant=unit.variant_id,
        state=state,
        done=_answered_requests(layout, last, is_completed=is_completed) if unit.kind is UnitKind.EVALUATE else None,
        total=last.total if last else None,
        job_id=job.job_id if job else (last.job_id if last else None),
        attempts=len(attempts),
        reason=reason,
        phase=last.phase if last and state is UnitState.RUNNING else None,
        seconds=_ended_seconds(attempts),
        running_since=last.start if last and state is UnitState.RUNNING else None,
        restored=(last.restored or 0) if last else 0,
        failure=last.failure if last else None,
        decision=last.decision if last else None,
        asked_tokens=_sum_known(attempt.facts.get("asked_tokens") for attempt in attempts),
        computed_tokens=_sum_known(attempt.facts.get("computed_tokens") for attempt in attempts),
    )


def _answered_requests(layout: RunLayout, last: AttemptRecord | None, *, is_completed: bool) -> int:
    """Return the committed requests: those before the last attempt, and those that it has committed."""
    if last is None or last.total is None:
        return 0
    if is_completed:
        return last.total
    committed = count_rows(layout.unit_segments(last.unit), last.attempt)
    return min(last.total, (last.restored or 0) + committed)


def _state(last: AttemptRecord | None, job: UnitJobStatus | None) -> tuple[UnitState, str | None]:
    """Return state and reason of a unit without a result: Slurm takes precedence over the attempt record."""
    if job and job.state in ACTIVE_STATES:
        state = UnitState.PENDING if job.is_pending else UnitState.RUNNING
        return state, job.reason if job.is_pending or job.is_unknown else None
    if last and last.launcher is Launcher.LOCAL and last.outcome is Outcome.RUNNING and is_alive(last.process):
        return UnitState.RUNNING, None
    if job and job.state is UnitState.CANCELLED:
        return UnitState.CANCELLED, job.reason
    return _inactive_state(last, job)


def _inactive_state(last: AttemptRecord | None, job: UnitJobStatus | None) -> tuple[UnitState, str | None]:
    """Return state and reason of a unit without a result that no job or process works on."""
    match last.outcome if last else None:
        case Outcome.DONE:
            return UnitState.WAITING, "the result is outdated or was removed; run `hpcq resume` to create it again"
        case Outcome.FAILED | Outcome.UNKNOWN:
            return UnitState.FAILED, last.reason if last else None
        case Outcome.INTERRUPTED:
            return UnitState.CANCELLED, (last.reason if last else None) or "interrupted"
        case Outcome.RUNNING:
            return UnitState.FAILED, _disappeared_reason(last, job)
    return (UnitState.FAILED, _disappeared_reason(last, job)) if job else (UnitState.WAITING, None)


def _disappeared_reason(last: AttemptRecord | None, job: UnitJobStatus | None) -> str:
    number = job.job_id if job else (last.job_id if last else "")
    slurm_reason = f" ({job.reason})" if job and job.reason else ""
    if last is None:
        return f"job {number} exited before the unit started{slurm_reason}: {last_log_line(job.log if job else None)}"
    cause = "killed, out of memory or out of time"
    return f"job {number} on {last.node} exited without reporting a reason: {cause}{slurm_reason}"


def _ended_seconds(attempts: list[AttemptRecord]) -> float | None:
    """Return the seconds spent in ended attempts; None if there are none."""
    spans = [
        (datetime.fromisoformat(item.end) - datetime.fromisoformat(item.start)).total_seconds()
        for item in attempts
        if item.end
    ]
    return round(sum(spans), 1) if spans else None


def _sum_known(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the known counts; None if all are unknown."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
