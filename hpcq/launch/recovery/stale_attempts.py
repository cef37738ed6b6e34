"""What became of attempts that left no last word, by evidence: Slurm's account of their job and node, or /proc.

An attempt that may still be alive is left alone. Knows attempts and how to ask; decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from hpcq.core.attempts import AttemptRecord, attempts_of
from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure, failure_of_exit
from hpcq.core.paths import RunLayout
from hpcq.core.processes import is_alive
from hpcq.launch.recovery.close_attempts import conclude
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.slurm.scontrol import JobDetails, is_down, show_job

_FAILURES = {
    "TIMEOUT": Failure.TIMEOUT,
    "DEADLINE": Failure.TIMEOUT,
    "PREEMPTED": Failure.PREEMPTED,
    "NODE_FAIL": Failure.NODE_FAULT,
    "BOOT_FAIL": Failure.NODE_FAULT,
    "OUT_OF_MEMORY": Failure.OUT_OF_MEMORY,
}
_ENDED = (*_FAILURES, "FAILED", "COMPLETED", "CANCELLED", "REVOKED")
"""squeue's manual, "JOB STATE CODES"; a job in any other state may still have a process."""

_REASONS = {
    Failure.PREEMPTED: "Slurm took the node, or queued the job again, before it was done",
    Failure.NODE_FAULT: "the node went down",
    Failure.TIMEOUT: "the job's time limit",
    Failure.OUT_OF_MEMORY: "Slurm says: out of memory",
}
_WITHOUT_A_WORD = "its process ended without a word"

ShowJob = Callable[[str], JobDetails | None]


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The job in which one runs: an id, and how often Slurm had started it before."""

    job_id: str
    restart: int


def own_job() -> SlurmJob:
    """The job in whose environment this process runs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job_id = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    return SlurmJob(job_id=job_id, restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def settle_predecessors(
    layout: RunLayout, unit: str, policy: Policy, *, own: SlurmJob | None, ask: ShowJob = show_job
) -> list[AttemptRecord]:
    """The unit's attempts in order, those that are dead by evidence settled and decided.

    Where Slurm cannot be asked there is no evidence, and they stay as they are.

    Raises:
        StorageError: a record cannot be written.
    """
    for record in attempts_of(layout.attempts, unit):
        failure = _failure(record, own, ask) if _is_open(record) else None
        if failure is not None:
            conclude(layout, record, policy, failure=failure, reason=_REASONS.get(failure, _WITHOUT_A_WORD))
    return attempts_of(layout.attempts, unit)


def _is_open(record: AttemptRecord) -> bool:
    """Nobody has said what follows from it. On this machine an interruption is a user's, and nothing does."""
    is_interrupted = record.outcome == "interrupted" and record.launcher == "slurm"
    has_said_why = record.outcome == "failed" and record.failure is not None
    return record.decision is None and (record.outcome == "running" or is_interrupted or has_said_why)


def _failure(record: AttemptRecord, own: SlurmJob | None, ask: ShowJob) -> Failure | None:
    """None: it may be alive, or a user ended it."""
    if record.outcome == "failed" and record.failure:
        return Failure(record.failure)
    if record.launcher == "local":
        here = record.process.startswith(f"{socket.gethostname()} ")
        return Failure.KILLED if here and not is_alive(record.process) else None
    if own is not None and record.job_id == own.job_id:
        return _requeued(record) if record.restart < own.restart else None
    try:
        job = ask(record.job_id)
    except SetupError:
        return None
    if job is None:
        # Slurm has forgotten it. One that had been told to stop was, in all likelihood, cancelled by its user.
        return Failure.KILLED if record.outcome == "running" else None
    return failure_of_job(job)


def _requeued(record: AttemptRecord) -> Failure:
    if record.failure:
        return Failure(record.failure)
    with contextlib.suppress(SetupError):
        if is_down(record.node):
            return Failure.NODE_FAULT
    return Failure.PREEMPTED


def failure_of_job(job: JobDetails) -> Failure | None:
    """The class of a job's end; None where it has not ended, or a user ended it."""
    if job.state not in _ENDED or job.state in ("CANCELLED", "REVOKED"):
        return None
    return _FAILURES.get(job.state) or failure_of_exit(job.exit_code) or Failure.KILLED
