"""Closing the record of an attempt that can no longer do so itself: what it committed, why it ended, what follows.

Knows attempts' files and segments' names. Who is dead, and of what, is the caller's to know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hpcq.core.attempts import Attempt, AttemptRecord, attempts_of, last_words, new_attempt, now, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure
from hpcq.core.paths import RunLayout
from hpcq.launch.recovery.retry_policy import Action, Decision, Policy, decide, gpu_hours


def added_by(layout: RunLayout, record: AttemptRecord) -> int:
    """Responses that the attempt committed, or what the worker itself counted (blocks of a checkpoint)."""
    # Only here: h5py takes 0.2 s to import, and hundreds of jobs that begin for the first time need none of it.
    from hpcq.store import count_rows

    return max(record.added, count_rows(layout.unit_segments(record.unit), record.attempt))


def settle(layout: RunLayout, record: AttemptRecord, failure: Failure, reason: str) -> AttemptRecord:
    """Write down that the attempt ended by `failure`; the record as it is now. What it said itself stands."""
    closed = replace(
        record,
        outcome="failed",
        failure=record.failure or str(failure),
        reason=record.reason or reason,
        end=record.end or now(),
        added=added_by(layout, record),
        phase=None,
    )
    return Attempt(layout.attempts, closed).record


def decision_on(layout: RunLayout, record: AttemptRecord, policy: Policy) -> Decision:
    """What becomes of the unit after `record`, by the records as they are on disk now."""
    spent = 0.0
    if policy.gpu_hours is not None:
        everything = read_attempts(layout.attempts).values()
        spent = gpu_hours((one for records in everything for one in records), datetime.now(UTC))
    history = [one for one in attempts_of(layout.attempts, record.unit) if one.attempt < record.attempt]
    failure = Failure(record.failure or Failure.KILLED)
    return decide(failure, [*history, record], policy, spent_gpu_hours=spent)


def conclude(
    layout: RunLayout, record: AttemptRecord, policy: Policy, *, failure: Failure, reason: str
) -> tuple[AttemptRecord, Decision]:
    """Settle `record` and write down what becomes of its unit, before anything is done about it."""
    settled = settle(layout, record, failure, reason)
    decision = decision_on(layout, settled, policy)
    noted = replace(settled, decision=str(decision.action), reason=reason_with(settled.reason, decision))
    return Attempt(layout.attempts, noted).record, decision


def reason_with(reason: str | None, decision: Decision) -> str:
    """The attempt's own reason, and that of the decision where it is more than the failure's class."""
    if decision.action is Action.GIVE_UP and "," in decision.reason:
        return f"{reason}. Given up: {decision.reason}"
    return reason or decision.reason


@dataclass(frozen=True, kw_only=True)
class EndedJob:
    """A job whose unit did not begin. node: '' where it is not known. log: what it printed."""

    job_id: str
    launcher: str
    node: str
    log: str
    restart: int = 0


def did_not_begin(layout: RunLayout, unit: str, job: EndedJob, failure: Failure) -> AttemptRecord:
    """Write down an attempt in the job's stead, so that it counts, and later commands know why it did not begin."""
    record = AttemptRecord(
        unit=unit,
        attempt=0,
        job_id=job.job_id,
        node=job.node,
        pid=0,
        start=now(),
        end=now(),
        launcher=job.launcher,
        outcome="failed",
        reason=f"it did not begin: {last_words(job.log)}",
        error=SetupError.__name__,
        restart=job.restart,
        failure=failure,
    )
    return new_attempt(layout.attempts, record).record


def cancelled(layout: RunLayout, unit: str, job: EndedJob) -> None:
    """Write down that somebody cancelled the job: its unit waits until somebody wants it again."""
    of_job = [one for one in attempts_of(layout.attempts, unit) if one.job_id == job.job_id]
    record = of_job[-1] if of_job else did_not_begin(layout, unit, job, Failure.KILLED)
    reason = record.reason if record.pid else "cancelled before it began"
    stopped = replace(record, outcome="interrupted", failure=None, decision=str(Action.STOP), reason=reason)
    Attempt(layout.attempts, stopped)
