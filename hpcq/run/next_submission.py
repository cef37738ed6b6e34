"""Next submission of a run: the arrays that `submit` would create now, from the plan, the store and the queue."""

from __future__ import annotations

from collections.abc import Mapping

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.monitor.status import ACTIVE_STATES, RunStatus, run_status
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import count_units
from hpcq.plan.units import PlannedArray, PlannedUnit
from hpcq.run.load import LoadedRun
from hpcq.run.outdated_jobs import find_outdated_jobs
from hpcq.run.portions import first_portion
from hpcq.run.staging import missing_inputs


@dataclass(frozen=True, kw_only=True)
class NextSubmission:
    """What `submit` would submit now.

    Attributes:
        status: State of each unit of the run.
        arrays: The arrays, in the order of their submission.
        missing: Arrays of everything that is to be submitted: more than `arrays` if the number of jobs is limited.
    """

    status: RunStatus
    arrays: tuple[PlannedArray, ...]
    missing: tuple[PlannedArray, ...]

    @property
    def later_units(self) -> int:
        """Number of units that later portions submit."""
        return count_units(self.missing) - count_units(self.arrays)


def next_submission(
    loaded: LoadedRun,
    jobs: Mapping[str, UnitJobStatus],
    *,
    retry_failed: bool = False,
    unattended: bool = False,
    free: int | None = None,
) -> NextSubmission:
    """Return what `submit` would submit now. `plan`, `submit --dry-run` and `submit` all call this.

    Args:
        loaded: The run.
        jobs: The units' jobs in Slurm; empty if the run was not submitted to Slurm.
        retry_failed: Include units that have failed permanently.
        unattended: Exclude units that are on hold until the user fixes their cause.
        free: Number of jobs that can be submitted now. None: no limit.
    """
    current = run_status(loaded.layout, loaded.plan.units, jobs)
    units = _units_to_submit(loaded, current, jobs, retry_failed=retry_failed, unattended=unattended)
    # Nothing may depend on a job whose result is on disk: Slurm may have requeued it, or even hold it.
    done = {unit.id for unit in current.units if unit.state is UnitState.DONE}
    active_arrays = {unit_id: job.array for unit_id, job in jobs.items() if job.is_live and unit_id not in done}
    arrays = missing = make_arrays(units, loaded.profile, active_arrays=active_arrays)
    if free is not None and free < len(units):
        merge = next((unit for unit in loaded.plan.units if unit.kind is UnitKind.MERGE), None)
        arrays = make_arrays(first_portion(missing, merge, free), loaded.profile, active_arrays=active_arrays)
    return NextSubmission(status=current, arrays=arrays, missing=missing)


def _units_to_submit(
    loaded: LoadedRun,
    current: RunStatus,
    jobs: Mapping[str, UnitJobStatus],
    *,
    retry_failed: bool,
    unattended: bool,
) -> list[PlannedUnit]:
    """Return the units to submit: neither done nor active, and neither they nor their dependencies are excluded.

    Units that have failed permanently are excluded unless `retry_failed` is set. Units on hold are excluded if
    `unattended` is set. Evaluations wait for jobs that evaluate the variant by an earlier plan, or both would compute
    the same requests; the merge after these jobs submits them. The merge is submitted with every evaluation, and a
    staging if an input is not on this file system.

    With `unattended`, the caller is the epilogue of a merge. If jobs of evaluations are pending or running, and only
    that merge is after them, another is submitted: a limit on jobs may have left room for the units, but not for their
    merge.
    """
    states = {unit.id: unit.state for unit in current.units}
    finished_or_active = {unit_id for unit_id, state in states.items() if state in (UnitState.DONE, *ACTIVE_STATES)}
    finished_or_active -= _orphans(current, jobs)
    outdated = find_outdated_jobs(loaded.layout, loaded.plan, jobs)
    with_earlier_work = {unit_id for unit_id, job in jobs.items() if job.job_id in outdated}
    waiting = {
        unit.variant for unit in current.units if unit.kind is UnitKind.EVALUATE and unit.id in with_earlier_work
    }
    excluded = {
        unit.id
        for unit in current.units
        if (unit.has_failed_permanently and not retry_failed) or (unit.is_on_hold and unattended)
    }
    chosen: list[PlannedUnit] = []
    has_evaluation = has_active_evaluation = False
    for unit in loaded.plan.units:
        wanted = unit.id not in finished_or_active
        if unit.kind is UnitKind.MERGE:
            merge_job = jobs.get(unit.id)
            wanted |= unattended and has_active_evaluation and not (merge_job and merge_job.is_pending)
            wanted |= has_evaluation or (unit.id in with_earlier_work and states[unit.id] is not UnitState.DONE)
        elif unit.kind is UnitKind.STAGE:
            is_active = states[unit.id] in ACTIVE_STATES and unit.id not in with_earlier_work
            wanted = not is_active and unit.id not in excluded and bool(missing_inputs(loaded))
        else:
            wanted &= excluded.isdisjoint((unit.id, *unit.depends_on))
            wanted &= unit.kind is not UnitKind.EVALUATE or unit.variant_id not in waiting
            has_evaluation |= wanted and unit.kind is UnitKind.EVALUATE
            has_active_evaluation |= states[unit.id] in ACTIVE_STATES and unit.kind is UnitKind.EVALUATE
        if wanted:
            chosen.append(unit)
    return chosen


def _orphans(current: RunStatus, jobs: Mapping[str, UnitJobStatus]) -> set[str]:
    """Return the local units that still run although the command that started them was killed: `submit` stops them."""
    if current.is_locked:
        return set()
    live_jobs = {unit_id for unit_id, job in jobs.items() if job.is_live}
    return {unit.id for unit in current.units if unit.state is UnitState.RUNNING and unit.id not in live_jobs}
