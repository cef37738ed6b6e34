"""Resubmission after a merge: submit units again whose job died before it could requeue itself.

Runs in the epilogue of the merge, on a node. It records why each unit has ended, so that retry budgets count, and then
does what `hpcq resume` does, except for units on hold.
"""

from __future__ import annotations

import sys

from hpcq.api import find
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.recovery.end_attempts import EndedJob, close_and_decide, record_cancelled, record_failed_start
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.recovery.stale_attempts import close_stale_attempts, failure_of_job
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.slurm.scontrol import show_job

_NEVER_SATISFIED = "DependencyNeverSatisfied"


def resubmit_missing(layout: RunLayout, policy: RetryPolicy) -> None:
    """Submit the missing units again, unless the run is complete.

    Raises:
        HpcqError: Another command has the run's lock, or Slurm rejects a submission.
    """
    units = find(layout.folder).status().units
    is_done = all(unit.state is UnitState.DONE for unit in units if unit.kind != UnitKind.MERGE)
    if is_done and not layout.unfinished_change.exists():
        return
    for unit, job in unit_jobs(layout).items():
        if not job.is_live:
            _close_last_job(layout, unit, job, policy)
    result = find(layout.folder).submit(unattended=True)
    for submission in result.submissions:
        sys.stderr.write(
            f"hpcq: {submission.array}: {len(submission.units)} units submitted again as job {submission.job_id}\n"
        )


def _close_last_job(layout: RunLayout, unit: str, status: UnitJobStatus, policy: RetryPolicy) -> None:
    """Record why the unit's last job has ended, unless the job did so itself."""
    history = close_stale_attempts(layout, unit, policy, own=None)
    last = history[-1] if history else None
    # Another job may have done the unit's work of an earlier plan, with fewer tasks.
    is_done = any(record.outcome is Outcome.DONE and record.job_id == status.job_id for record in history)
    is_unsatisfiable = status.job is not None and status.job.reason == _NEVER_SATISFIED
    if is_done or status.state is UnitState.DONE or is_unsatisfiable:
        return
    job = EndedJob(job_id=status.job_id, launcher=Launcher.SLURM, node="", log=status.log)
    was_interrupted = last is not None and last.outcome is Outcome.INTERRUPTED and last.decision is None
    if status.state is UnitState.CANCELLED or was_interrupted:
        record_cancelled(layout, unit, job)
    elif last is None or last.job_id != job.job_id:
        details = show_job(job.job_id)
        failure = (failure_of_job(details) if details else None) or Failure.KILLED
        close_and_decide(
            layout, record_failed_start(layout, unit, job, failure), policy, failure=failure, reason=str(failure)
        )
