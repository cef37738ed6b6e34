"""Handler of termination signals under Slurm: commit responses, record the attempt, requeue the job, exit.

Slurm requeues a job by itself after some preemptions but not after others, and never at a time limit. A job that exits
in the grace time of a preemption counts as failed, so the unit requests the requeue before it exits. A process that
keeps running while its requeued job is pending may still run when the job restarts: Slurm then drains the node
("Duplicate jobid") and holds the job (both observed with Slurm 22.05). If Slurm does not respond, the unit continues
until it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import replace
from datetime import datetime, timedelta

from hpcq.core.attempts import Attempt, utc_now
from hpcq.core.errors import HpcqError
from hpcq.core.failures import SIGTERMED, Failure
from hpcq.core.outcomes import Outcome
from hpcq.core.paths import RunLayout
from hpcq.launch.recovery.close_attempts import combined_reason, committed_rows, decide_from_records
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.scontrol import requeue, show_job

SIGNAL_DELAY_S = 90
"""Seconds between the signal and the time limit: enough to commit a last segment on a slow disk."""

_SLACK_S = 60
"""Slurm sends that signal up to 60 seconds early (sbatch's manual, --signal)."""


class PreemptionHandler:
    """Callback of `SignalListener`, called in its thread with each signal; with None if slurmstepd has died."""

    def __init__(self, attempt: Attempt, layout: RunLayout, policy: RetryPolicy) -> None:
        self._attempt = attempt
        self._layout = layout
        self._policy = policy
        self._is_final = False

    def __call__(self, number: signal.Signals | None) -> None:
        """Commit; requeue the job unless Slurm is already ending it; then exit, unless the decision is not to retry."""
        self._attempt.notify_termination()
        if self._is_final:
            return
        try:
            may_exit = self._record_and_requeue(number)
        except (HpcqError, OSError):
            # Continue until killed: committed responses are safe, and further commits save work of the next attempt.
            traceback.print_exc()
            return
        if may_exit:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not an exception: the main thread may be in a long C call. Nothing that it does needs cleanup.
            os._exit(SIGTERMED)

    def _record_and_requeue(self, number: signal.Signals | None) -> bool:
        """Record the interruption and requeue the job if necessary; return whether this process may exit."""
        cause = f"received {number.name}" if number else "slurmstepd was killed"
        self._attempt.update(outcome=Outcome.INTERRUPTED, reason=f"{cause}: preempted or cancelled", end=utc_now())
        job = show_job(self._attempt.record.job_id)
        if job is not None and job.state is SlurmState.RUNNING:
            return self._requeue(_failure(number, job), cause)
        # Slurm is ending the job, or it does not see that the process still runs (slurmstepd is dead).
        return job is not None or number is None

    def _requeue(self, failure: Failure, cause: str) -> bool:
        before = self._attempt.record
        record = replace(
            before, failure=failure, committed=committed_rows(self._layout, before), reason=f"{cause}: {failure}"
        )
        decision = decide_from_records(self._layout, record, self._policy)
        self._attempt.update(
            failure=record.failure,
            committed=record.committed,
            reason=combined_reason(record.reason, decision),
            decision=decision.action,
        )
        self._is_final = not decision.action.is_retry
        if decision.action.is_retry:
            requeue(record.job_id)
        return decision.action.is_retry


def _failure(number: signal.Signals | None, job: SlurmJob) -> Failure:
    if number is None:
        return Failure.KILLED
    # In the grace time of a preemption, EndTime is the end of the grace time.
    soon = datetime.now() + timedelta(seconds=SIGNAL_DELAY_S + _SLACK_S)  # noqa: DTZ005 (scontrol tells local time)
    is_timeout = not job.is_preempted and job.end_time is not None and job.end_time <= soon
    return Failure.TIMEOUT if is_timeout else Failure.PREEMPTED
