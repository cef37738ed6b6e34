"""Stale attempts: find out from Slurm, the node or /proc why an attempt ended without a record.

An attempt that may still be alive is not changed.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from hpcq.core.attempts import AttemptRecord, read_unit_attempts
from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure, classify_exit_code
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive
from hpcq.core.work import UnitState
from hpcq.launch.recovery.close_attempts import close_and_decide
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.scontrol import is_down, show_job

_FAILURES = {
    SlurmState.TIMEOUT: Failure.TIMEOUT,
    SlurmState.DEADLINE: Failure.TIMEOUT,
    SlurmState.PREEMPTED: Failure.PREEMPTED,
    SlurmState.NODE_FAIL: Failure.NODE_FAULT,
    SlurmState.BOOT_FAIL: Failure.NODE_FAULT,
    SlurmState.OUT_OF_MEMORY: Failure.OUT_OF_MEMORY,
}
_REASONS = {
    Failure.PREEMPTED: "Slurm took the node or requeued the job before completion",
    Failure.NODE_FAULT: "the node went down",
    Failure.TIMEOUT: "the job reached its time limit",
    Failure.OUT_OF_MEMORY: "Slurm reports: out of memory",
}
_NO_REASON = "its process exited without reporting a reason"

ShowJob = Callable[[str], SlurmJob | None]


def close_stale_attempts(
    layout: RunLayout, unit: str, policy: RetryPolicy, *, own: SlurmJob | None, query_job: ShowJob = show_job
) -> list[AttemptRecord]:
    """Close attempts of the unit that are proven dead, record decisions about them, and return all attempts in order.

    If Slurm does not respond there is no proof, and the records are not changed.

    Args:
        layout: Folders of the run.
        unit: Id of the unit.
        policy: Limits of retries.
        own: The caller's own job, if it runs the unit.
        query_job: Queries Slurm for a job.

    Raises:
        StorageError: A record cannot be written.
    """
    for record in read_unit_attempts(layout.attempts, unit):
        failure = _failure(record, own, query_job) if _is_open(record) else None
        if failure is not None:
            close_and_decide(layout, record, policy, failure=failure, reason=_REASONS.get(failure, _NO_REASON))
    return read_unit_attempts(layout.attempts, unit)


def _is_open(record: AttemptRecord) -> bool:
    """Whether no decision is recorded. An interrupted local attempt needs none: the user interrupted it."""
    is_interrupted = record.outcome is Outcome.INTERRUPTED and record.launcher is Launcher.SLURM
    has_failure = record.outcome is Outcome.FAILED and record.failure is not None
    return record.decision is None and (record.outcome is Outcome.RUNNING or is_interrupted or has_failure)


def _failure(record: AttemptRecord, own: SlurmJob | None, query_job: ShowJob) -> Failure | None:
    """Return why the attempt ended; None if it may be alive, or if the user ended it."""
    if record.outcome is Outcome.FAILED and record.failure:
        return record.failure
    if record.launcher is Launcher.LOCAL:
        here = record.process.startswith(f"{socket.gethostname()} ")
        return Failure.KILLED if here and not is_alive(record.process) else None
    if own is not None and record.job_id == own.job_id:
        return _requeued(record) if record.restart < own.restarts else None
    try:
        job = query_job(record.job_id)
    except SetupError:
        return None
    if job is None:
        # Slurm no longer knows the job. If it had received a signal, the user most likely cancelled it.
        return Failure.KILLED if record.outcome is Outcome.RUNNING else None
    return failure_of_job(job)


def _requeued(record: AttemptRecord) -> Failure:
    if record.failure:
        return record.failure
    with contextlib.suppress(SetupError):
        if is_down(record.node):
            return Failure.NODE_FAULT
    return Failure.PREEMPTED


def failure_of_job(job: SlurmJob) -> Failure | None:
    """Return the failure class of a job; None if it has not ended, or if the user cancelled it."""
    if not job.state.has_ended or job.state.unit_state is UnitState.CANCELLED:
        return None
    return _FAILURES.get(job.state) or classify_exit_code(job.exit_code) or Failure.KILLED
