"""The finisher: after a merge, what jobs that died with their batch shell have left undone is handed over once more.

Runs in the aftermath of the merge, on a node. Writes down of each unit that has ended why, so that budgets count, and
then does what `hpcq resume` does, but for what waits for a cure. Knows the run's plan, its queue and its attempts.
"""

from __future__ import annotations

import os
import sys

from hpcq import api
from hpcq.core.failures import Failure
from hpcq.core.paths import RunLayout
from hpcq.core.work import Kind, State
from hpcq.launch.job_status import UnitJobView, unit_jobs
from hpcq.launch.recovery.close_attempts import EndedJob, cancelled, conclude, did_not_begin
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.launch.recovery.stale_attempts import failure_of_job, settle_predecessors
from hpcq.slurm.scontrol import show_job

_OF_THE_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
_NEVER_SATISFIED = "DependencyNeverSatisfied"


def finish(layout: RunLayout, policy: Policy) -> None:
    """Hand over what is missing, unless nothing is that nobody stopped.

    Raises:
        HpcqError: another command is working on the run, or a submission is refused.
    """
    if all(unit.state is State.DONE for unit in api.status(str(layout.folder)).units if unit.kind != Kind.MERGE):
        return
    for unit, job in unit_jobs(layout).items():
        if not job.is_live:
            _settle(layout, unit, job, policy)
    _forget_own_job()
    handed = api.hand_over(api.open_run(str(layout.folder)), unattended=True)
    for submission in handed.submissions:
        sys.stderr.write(f"hpcq: {submission.array}: {len(submission.units)} units again, as job {submission.job_id}\n")


def _settle(layout: RunLayout, unit: str, view: UnitJobView, policy: Policy) -> None:
    """Write down why the unit's last job has ended, where it did not do so itself."""
    history = settle_predecessors(layout, unit, policy, own=None)
    last = history[-1] if history else None
    is_done = any(record.outcome == "done" for record in history)
    if is_done or view.state is State.DONE or (view.reason or "").endswith(_NEVER_SATISFIED):
        return
    job = EndedJob(job_id=view.job_id, launcher="slurm", node="", log=view.log)
    was_told = last is not None and last.outcome == "interrupted" and last.decision is None
    if view.state is State.CANCELLED or was_told:
        cancelled(layout, unit, job)
    elif last is None or last.job_id != job.job_id:
        told = show_job(job.job_id)
        failure = (failure_of_job(told) if told else None) or Failure.KILLED
        conclude(layout, did_not_begin(layout, unit, job, failure), policy, failure=failure, reason=str(failure))


def _forget_own_job() -> None:
    """sbatch hands its environment on, and Slurm overwrites only those of its variables that a new job has."""
    for name in [name for name in os.environ if name.startswith(_OF_THE_JOB) and name != "SLURM_CONF"]:
        del os.environ[name]
