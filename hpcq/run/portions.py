"""Portions of a submission, for sites that limit the number of submitted jobs (`slurm.max_submitted_jobs`)."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind
from hpcq.launch.job_status import all_jobs, cancel_jobs
from hpcq.launch.submissions import was_submitted
from hpcq.manifest.profiles import Profile
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.units import PlannedArray, PlannedUnit
from hpcq.run.load import LoadedRun
from hpcq.slurm.client import on_cluster
from hpcq.slurm.squeue import count_jobs


def free_jobs(loaded: LoadedRun) -> int | None:
    """Return how many jobs can be submitted now; None if the cluster profile has no limit.

    Pending merges of the run do not count: `replace_merges` cancels them for the merge of the next portion.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    limit = loaded.profile.slurm.max_submitted_jobs
    if limit is None or not loaded.on_slurm:
        return None
    with on_cluster(loaded.profile.slurm.cluster):
        free = limit - count_jobs()
    return max(0, free + len(_pending_merges(loaded)))


def replace_merges(loaded: LoadedRun, arrays: Sequence[PlannedArray]) -> None:
    """Cancel the pending merges of the run if `arrays`, which are submitted next, have a merge.

    The next merge waits for the units of an earlier one that still matter, and for no others: an earlier merge may wait
    for a held job whose result exists. If the number of jobs is limited, merges of earlier portions would take the room
    of units.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    if loaded.on_slurm and any(array.kind is UnitKind.MERGE for array in arrays):
        cancel_jobs(_pending_merges(loaded), only_pending=True)


def _pending_merges(loaded: LoadedRun) -> list[UnitJobStatus]:
    jobs = all_jobs(loaded.layout, may_write=False) if was_submitted(loaded.layout) else []
    return [
        job for name, job in jobs if job.is_pending and (unit := UnitId.parse(name)) and unit.kind is UnitKind.MERGE
    ]


def no_room_message(profile: Profile) -> str:
    """Return the message if not even one unit and a merge can be submitted."""
    return (
        f"slurm.max_submitted_jobs of the cluster profile is {profile.slurm.max_submitted_jobs}. A submission needs at"
        " least one unit and the merge, and too many of your jobs are pending or running: run the command again when"
        " some of them have ended."
    )


def first_portion(arrays: Sequence[PlannedArray], merge: PlannedUnit | None, free: int) -> list[PlannedUnit]:
    """Return the units that are submitted first: in the order of `arrays`, then the merge, which submits the next.

    Args:
        arrays: Arrays of all units to submit, each after those that it depends on.
        merge: Merge of the run, which every portion needs. None: the run has no merge.
        free: Number of jobs that can be submitted.

    Returns:
        At most `free` units; none if there is no room for one of them and the merge.
    """
    units = [unit for array in arrays for unit in array.units if unit.kind is not UnitKind.MERGE]
    last = [merge] if merge else []
    chosen = units[: max(0, free - len(last))]
    return [*chosen, *last] if chosen or (not units and free) else []
