"""End of attempts that died without a record: count committed rows, record the failure, decide on a retry.

The caller determines which attempts are dead, and of what failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hpcq.core.attempts import (
    Attempt,
    AttemptRecord,
    last_log_line,
    new_attempt,
    read_attempts,
    read_unit_attempts,
    utc_now,
)
from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Action, Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.launch.recovery.retry_policy import Decision, RetryPolicy, decide, gpu_hours


def committed_rows(layout: RunLayout, record: AttemptRecord) -> int:
    """Return the number of responses that the attempt committed, or the worker's own count (blocks of a checkpoint)."""
    # Imported here: h5py takes 0.2 s to import, and the hundreds of first attempts of a run do not need it.
    from hpcq.store import count_rows

    return max(record.committed, count_rows(layout.unit_segments(record.unit), record.attempt))


def close_attempt(layout: RunLayout, record: AttemptRecord, failure: Failure, reason: str) -> AttemptRecord:
    """Record that the attempt ended with `failure` and return the updated record. Fields it already set are kept."""
    closed = replace(
        record,
        outcome=Outcome.FAILED,
        failure=record.failure or failure,
        reason=record.reason or reason,
        end=record.end or utc_now(),
        committed=committed_rows(layout, record),
        phase=None,
    )
    return Attempt(layout.attempts, closed).record


def decide_from_records(layout: RunLayout, record: AttemptRecord, policy: RetryPolicy) -> Decision:
    """Decide about the unit after the attempt `record`, from all records on disk."""
    spent = 0.0
    if policy.gpu_hours is not None:
        attempts = read_attempts(layout.attempts).values()
        spent = gpu_hours((one for records in attempts for one in records), datetime.now(UTC))
    history = [one for one in read_unit_attempts(layout.attempts, record.unit) if one.attempt < record.attempt]
    failure = record.failure or Failure.KILLED
    return decide(failure, [*history, record], policy, spent_gpu_hours=spent)


def close_and_decide(
    layout: RunLayout, record: AttemptRecord, policy: RetryPolicy, *, failure: Failure, reason: str
) -> tuple[AttemptRecord, Decision]:
    """Close the attempt and record the decision about its unit before it is carried out; return both."""
    closed = close_attempt(layout, record, failure, reason)
    decision = decide_from_records(layout, closed, policy)
    decided = replace(closed, decision=decision.action, reason=combined_reason(closed.reason, decision))
    return Attempt(layout.attempts, decided).record, decision


def combined_reason(reason: str | None, decision: Decision) -> str:
    """Return the attempt's reason, followed by the limit that the decision is due to, if there is one."""
    if decision.is_exhausted:
        return f"{reason}. Not retried: {decision.reason}"
    return reason or decision.reason


@dataclass(frozen=True, kw_only=True)
class EndedJob:
    """An ended job whose unit did not start.

    Attributes:
        launcher: What started the job.
        node: Name of its node, "" if unknown.
        log: Path of its output.
        restart: How often Slurm had restarted the job.
        log_offset: Size in bytes of what earlier starts of the job have printed to the log.
    """

    job_id: str
    launcher: Launcher
    node: str
    log: str
    restart: int = 0
    log_offset: int = 0


def record_failed_start(layout: RunLayout, unit: str, job: EndedJob, failure: Failure) -> AttemptRecord:
    """Record an attempt on behalf of the job: it counts, and later commands report why the unit did not start."""
    reason = f"it did not start: {last_log_line(job.log, job.log_offset)}"
    return new_attempt(layout.attempts, _failed_start(unit, job, failure, reason)).record


def _failed_start(unit: str, job: EndedJob, failure: Failure, reason: str) -> AttemptRecord:
    return AttemptRecord(
        unit=unit,
        attempt=0,
        job_id=job.job_id,
        node=job.node,
        pid=0,
        start=utc_now(),
        end=utc_now(),
        launcher=job.launcher,
        outcome=Outcome.FAILED,
        reason=reason,
        error=SetupError.__name__,
        restart=job.restart,
        failure=failure,
    )


def record_interrupted(layout: RunLayout, record: AttemptRecord) -> None:
    """Record that the command which ran the attempt was stopped: the attempt knows its signal only, or was killed."""
    reason = "interrupted by the user: its command was stopped (Ctrl-C, `hpcq cancel` or a signal)"
    ended = replace(record, outcome=Outcome.INTERRUPTED, reason=reason, end=record.end or utc_now(), phase=None)
    Attempt(layout.attempts, ended)


def record_cancelled(
    layout: RunLayout, unit: str, job: EndedJob, attempts: Mapping[str, Sequence[AttemptRecord]] | None = None
) -> None:
    """Record that the user cancelled the job. The unit is on hold until the user resumes it.

    The record is not on disk when this returns: `cancel` calls it for thousands of units, and fsync takes milliseconds.
    If a crash of the host loses it, the unit is waiting instead of on hold.

    Args:
        layout: Paths of the run.
        unit: The unit.
        job: Its job.
        attempts: All attempts of the run, if the caller has read them.
    """
    known = read_unit_attempts(layout.attempts, unit) if attempts is None else attempts.get(unit, ())
    held: dict[str, Any] = {"outcome": Outcome.INTERRUPTED, "failure": None, "decision": Action.HOLD}
    if of_job := [one for one in known if one.job_id == job.job_id]:
        Attempt(layout.attempts, replace(of_job[-1], **held, reason=of_job[-1].reason), is_durable=False)
        return
    record = replace(_failed_start(unit, job, Failure.KILLED, "cancelled before it started"), **held)
    # Without a claim: if the job has started after all, its attempt ends now and replaces this record.
    number = max((one.attempt for one in known), default=0) + 1
    Attempt(layout.attempts, replace(record, attempt=number), is_durable=False)


def record_released(layout: RunLayout, unit: str, attempts: Mapping[str, Sequence[AttemptRecord]]) -> None:
    """Record that the user has resumed a unit on hold, which a later portion submits: the merge may submit it."""
    known = attempts.get(unit, ())
    job = EndedJob(job_id=known[-1].job_id if known else "", launcher=Launcher.SLURM, node="", log="")
    record = _failed_start(unit, job, Failure.KILLED, "resumed, and submitted later by the merge")
    number = max((one.attempt for one in known), default=0) + 1
    released: dict[str, Any] = {"outcome": Outcome.INTERRUPTED, "failure": None, "decision": Action.RETRY}
    Attempt(layout.attempts, replace(record, attempt=number, **released), is_durable=False)
