"""Pending jobs that cannot start: cancel them, so that a submission replaces them by jobs of the current plan."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from hpcq.core.paths import RunLayout
from hpcq.launch.job_status import cancel_jobs, unit_jobs
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.units import PlannedUnit

_LOG = logging.getLogger(__name__)

_TIMEOUT_S, _INTERVAL_S = 60.0, 0.5


def cancel_stuck_jobs(
    layout: RunLayout, units: Sequence[PlannedUnit], jobs: dict[str, UnitJobStatus]
) -> dict[str, UnitJobStatus]:
    """Cancel the pending jobs that cannot start, and those that wait for them; return the jobs of the run afterwards.

    A job waits for the reason that Slurm reports: its nodes are drained, its request exceeds a limit. Jobs that have
    started in the meantime are not affected.

    Args:
        layout: Paths of the run.
        units: All units of the run, each after those that it depends on.
        jobs: The units' jobs.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    cancelled: dict[str, UnitJobStatus] = {}
    for unit in units:
        job = jobs.get(unit.id)
        waits = not cancelled.keys().isdisjoint(unit.depends_on)
        if job and job.is_pending and (job.cannot_start or waits):
            cancelled[unit.id] = job
    if not any(job.cannot_start for job in cancelled.values()):
        return jobs
    stuck = [unit for unit, job in cancelled.items() if job.cannot_start]
    _LOG.warning("%d pending units cannot start, and are submitted again: %s.", len(stuck), ", ".join(stuck[:3]))
    cancel_jobs(cancelled.values(), only_pending=True)
    deadline_s = time.monotonic() + _TIMEOUT_S
    while True:
        jobs = unit_jobs(layout)
        if not any(jobs[unit].job_id == job.job_id and jobs[unit].is_pending for unit, job in cancelled.items()):
            return jobs
        if time.monotonic() > deadline_s:
            return jobs  # they are pending still, and not submitted again
        time.sleep(_INTERVAL_S)
