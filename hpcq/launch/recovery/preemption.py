"""What a unit under Slurm does when its end is announced: commit, write it down, have its job queued again, and leave.

Slurm queues a job again by itself after some preemptions, and after others it does not; it never does at a time limit.
A job that leaves in the grace time of a preemption has failed for good, so the unit asks first. One that lingers while
its job waits may meet it again: Slurm then drains the node ("Duplicate jobid") and holds the job (both seen with
22.05).
Where Slurm cannot be asked, the unit works on until it is killed. Knows one attempt and its job.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from dataclasses import replace
from datetime import datetime, timedelta

from hpcq.core.attempts import Attempt, now
from hpcq.core.errors import HpcqError
from hpcq.core.failures import SIGTERMED, Failure
from hpcq.core.paths import RunLayout
from hpcq.launch.recovery.close_attempts import added_by, decision_on, reason_with
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.slurm.scontrol import JobDetails, requeue, show_job

SIGNAL_DELAY_S = 90
"""Seconds between the announcement of the time limit and the end: enough to commit a last segment on a slow disk."""

_SLACK_S = 60
"""Slurm sends that signal up to 60 seconds early (sbatch's manual, --signal)."""


class Announced:
    """Called with each signal, in the notices' thread; with None where the step's own daemon has died."""

    def __init__(self, attempt: Attempt, layout: RunLayout, policy: Policy) -> None:
        self._attempt = attempt
        self._layout = layout
        self._policy = policy
        self._is_given_up = False

    def __call__(self, number: signal.Signals | None) -> None:
        """Commit; if Slurm is not ending the job, have it queued again; then leave, unless it has been given up."""
        self._attempt.notify()
        if self._is_given_up:
            return
        try:
            leaves = self._arrange(number)
        except (HpcqError, OSError):
            # What is committed is safe, and what the unit commits until it is killed need not be done again.
            traceback.print_exc()
            return
        if leaves:
            sys.stdout.flush()
            sys.stderr.flush()
            # Not by an exception: the main thread may be far from Python. Nothing that it does needs an end.
            os._exit(SIGTERMED)

    def _arrange(self, number: signal.Signals | None) -> bool:
        """Whether nothing is left to do here."""
        told = f"told to stop by {number.name}" if number else "the daemon of its step was killed"
        self._attempt.update(outcome="interrupted", reason=f"{told}: preempted or cancelled", end=now())
        job = show_job(self._attempt.record.job_id)
        if job is not None and job.state == "RUNNING":
            return self._is_queued_again(_failure(number, job), told)
        # Slurm is ending the job, or (without the step's daemon) does not see that it still runs.
        return job is not None or number is None

    def _is_queued_again(self, failure: Failure, told: str) -> bool:
        before = self._attempt.record
        added = added_by(self._layout, before)
        record = replace(before, failure=str(failure), added=added, reason=f"{told}: {failure}")
        decision = decision_on(self._layout, record, self._policy)
        self._attempt.update(
            failure=record.failure,
            added=record.added,
            reason=reason_with(record.reason, decision),
            decision=str(decision.action),
        )
        self._is_given_up = not decision.action.goes_on
        if decision.action.goes_on:
            requeue(record.job_id)
        return decision.action.goes_on


def _failure(number: signal.Signals | None, job: JobDetails) -> Failure:
    if number is None:
        return Failure.KILLED
    # In the grace time of a preemption the job's end is that of the grace time.
    soon = datetime.now() + timedelta(seconds=SIGNAL_DELAY_S + _SLACK_S)  # noqa: DTZ005 (scontrol tells local time)
    is_timeout = not job.is_preempted and job.ends is not None and job.ends <= soon
    return Failure.TIMEOUT if is_timeout else Failure.PREEMPTED
