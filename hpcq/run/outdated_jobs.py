"""Outdated jobs: pending and running jobs of an earlier plan whose units have other work in the current plan.

The work of an evaluation changes when tasks are added or removed, that of a staging when models are, and that of a
merge with every change. hpcq does not change such a job, and its responses are used. But it does not do the work of the
current plan.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.units import Plan
from hpcq.run.record import read_plan
from hpcq.run.write_run import OUTDATED_JOBS


def find_outdated_jobs(layout: RunLayout, plan: Plan, jobs: Mapping[str, UnitJobStatus]) -> frozenset[str]:
    """Return the ids of the pending and running jobs that have the work of an earlier plan.

    Args:
        layout: Paths of the run.
        plan: The current plan. The run's folder may still have the earlier one.
        jobs: The units' jobs in Slurm, by unit id.
    """
    live = {unit_id: job.job_id for unit_id, job in jobs.items() if job.is_live}
    document = read_plan(layout) if live else None
    if document is None:
        return frozenset()
    outdated = {job_id for job_id in live.values() if job_id in document.get(OUTDATED_JOBS, ())}
    addresses = {row["id"]: row["address"] for row in document["units"]}
    for unit in plan.units:
        if unit.id in live and unit.id in addresses:
            is_merge = unit.kind is UnitKind.MERGE
            before, after = (document.get("address"), plan.address) if is_merge else (addresses[unit.id], unit.address)
            if before != after:
                outdated.add(live[unit.id])
    return frozenset(outdated)
