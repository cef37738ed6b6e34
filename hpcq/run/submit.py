"""Plan and submit a run: which units are missing, the arrays for them, and the launcher that runs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import make_private_folders
from hpcq.core.run_lock import run_lock
from hpcq.core.work import UnitKind, UnitState
from hpcq.launch.array_spec import Submission
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import UnitJobStatus, live_arrays, unit_jobs_if_any
from hpcq.launch.local_control import stop_orphans
from hpcq.launch.local_launcher import LocalLauncher, LocalResources
from hpcq.manifest.profiles import Profile
from hpcq.monitor.status import ACTIVE_STATES, JobStatus, RunStatus, run_status
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import estimated_gpu_hours, plan_document
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.units import PlannedArray, PlannedUnit
from hpcq.run.preflight import check_submittable
from hpcq.run.run import LoadedRun, check_same_plan, write_run

STATUS_INTERVAL_S = 1.0
MAX_LISTED_JOBS = 3

StatusCallback = Callable[[RunStatus], None]
"""Receives the status of a run now and then while it runs."""


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """Result of `plan`.

    Attributes:
        loaded: The run as resolved and planned.
        status: State of each planned unit on disk.
        arrays: Arrays that a submission would create now.
        document: The document of `plan --json`.
    """

    loaded: LoadedRun
    status: RunStatus
    arrays: tuple[PlannedArray, ...]
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SubmitResult:
    """Result of `submit`.

    Attributes:
        loaded: The run as resolved and planned.
        submissions: Arrays accepted by Slurm; empty with the local scheduler.
        status: State of the run after the submission.
    """

    loaded: LoadedRun
    submissions: tuple[Submission, ...]
    status: RunStatus


def plan_run(loaded: LoadedRun) -> PlanResult:
    """Plan without writing or submitting anything. Units whose result is on disk are done."""
    current = run_status(loaded.layout, plan_document(loaded.plan, (), {})["units"], {})
    arrays = make_arrays(_units_to_submit(loaded, current, retry_failed=True), loaded.profile)
    states = {unit.id: unit.state for unit in current.units}
    document = plan_document(loaded.plan, arrays, states, simulate_estimates(arrays, loaded.profile))
    return PlanResult(loaded=loaded, status=current, arrays=arrays, document=document)


def estimate_gpu_hours(loaded: LoadedRun, *, retry_failed: bool = False) -> dict[str, float]:
    """Estimate the GPU-hours per GPU class that `submit` would add now. Pending and running jobs are not counted.

    Raises:
        SetupError: Slurm does not answer.
    """
    jobs = unit_jobs_if_any(loaded.layout)
    current = run_status(loaded.layout, plan_document(loaded.plan, (), {})["units"], job_statuses(jobs))
    return estimated_gpu_hours(
        make_arrays(_units_to_submit(loaded, current, retry_failed=retry_failed), loaded.profile)
    )


def submit_run(
    loaded: LoadedRun, *, retry_failed: bool = False, unattended: bool = False, on_status: StatusCallback | None = None
) -> SubmitResult:
    """Submit all missing units to Slurm and return; with the local scheduler, run them and return when they have ended.

    Args:
        loaded: The run.
        retry_failed: Also submit units that have failed permanently.
        unattended: Called by a job, not by the user: skip units that are on hold until the user fixes their cause.
        on_status: Called about once per second with the state of a local run.

    Raises:
        UserInputError: A unit cannot run, the run's folder belongs to another manifest, jobs of an earlier plan are
            still pending or running, or another user can write to the run's folders.
        SetupError: A model, an environment or Slurm is missing.
    """
    check_submittable(loaded)
    check_same_plan(loaded)
    make_private_folders(loaded.layout)
    with run_lock(loaded.layout):
        jobs = unit_jobs_if_any(loaded.layout)
        _refuse_unplanned_jobs(loaded, jobs)
        stop_orphans(loaded.layout)
        write_run(loaded)
        units = plan_document(loaded.plan, (), {})["units"]
        current = run_status(loaded.layout, units, job_statuses(jobs))
        missing = _units_to_submit(loaded, current, retry_failed=retry_failed, unattended=unattended)
        # Nothing may depend on a job whose result is on disk: Slurm may have requeued it, or even hold it.
        done = {unit.id for unit in current.units if unit.state is UnitState.DONE}
        active_arrays = {unit_id: job.array for unit_id, job in jobs.items() if job.is_live and unit_id not in done}
        arrays = make_arrays(missing, loaded.profile, active_arrays=active_arrays)
        orders = [
            build_array_spec(loaded.plan.run, array, loaded.profile, loaded.resolved.manifest.retries)
            for array in arrays
        ]
        submissions: tuple[Submission, ...] = ()
        if loaded.on_slurm:
            from hpcq.launch.slurm_launcher import SlurmLauncher
            from hpcq.slurm.squeue import release

            release(job.element for job in jobs.values() if job.is_held)
            submissions = tuple(SlurmLauncher(loaded.layout).submit(orders, live_arrays(jobs)))
        elif orders:
            report_status = _status_reporter(loaded.layout, units, on_status) if on_status else _no_status
            LocalLauncher(loaded.layout, local_resources(loaded.profile), on_poll=report_status).run(orders)
    jobs = unit_jobs_if_any(loaded.layout)
    return SubmitResult(
        loaded=loaded, submissions=submissions, status=run_status(loaded.layout, units, job_statuses(jobs))
    )


def _no_status() -> None:
    pass


def _status_reporter(
    layout: RunLayout, units: Sequence[Mapping[str, Any]], on_status: StatusCallback
) -> Callable[[], None]:
    """Return a function that calls `on_status`, at most once per `STATUS_INTERVAL_S`."""
    reported_s = -STATUS_INTERVAL_S

    def report_status() -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= STATUS_INTERVAL_S:
            reported_s = time.monotonic()
            on_status(run_status(layout, units, {}))

    return report_status


def _refuse_unplanned_jobs(loaded: LoadedRun, jobs: Mapping[str, UnitJobStatus]) -> None:
    """Refuse to submit while jobs of another plan of this run are active: they would do the same work twice.

    With the local scheduler, every active Slurm job of the run counts.
    """
    planned = {unit.id for unit in loaded.plan.units} if loaded.on_slurm else set()
    unplanned = sorted(job.job_id for unit_id, job in jobs.items() if job.is_live and unit_id not in planned)
    if unplanned:
        listed = ", ".join([*unplanned[:MAX_LISTED_JOBS], *(["…"] if len(unplanned) > MAX_LISTED_JOBS else [])])
        raise UserInputError(
            f"{loaded.layout.folder}: jobs of an earlier submission are still pending or running ({listed}): "
            f"wait for them, or run `hpcq cancel {loaded.layout.name}`."
        )


def _units_to_submit(
    loaded: LoadedRun, current: RunStatus, *, retry_failed: bool, unattended: bool = False
) -> list[PlannedUnit]:
    """Return the units to submit: neither done nor active, and neither they nor their dependencies are excluded.

    Units that have failed permanently are excluded unless `retry_failed` is set. Units on hold are excluded if
    `unattended` is set. The merge is submitted with every evaluation.
    """
    states = {unit.id: unit.state for unit in current.units}
    excluded = {
        unit.id
        for unit in current.units
        if (unit.has_failed_permanently and not retry_failed) or (unit.is_on_hold and unattended)
    }
    chosen: list[PlannedUnit] = []
    has_evaluation = False
    for unit in loaded.plan.units:
        state = states[unit.id]
        if unit.kind is UnitKind.MERGE:
            wanted = has_evaluation or state not in (UnitState.DONE, *ACTIVE_STATES)
        else:
            wanted = (
                state is not UnitState.DONE
                and state not in ACTIVE_STATES
                and excluded.isdisjoint((unit.id, *unit.depends_on))
            )
            has_evaluation |= wanted and unit.kind is UnitKind.EVALUATE
        if wanted:
            chosen.append(unit)
    return chosen


def local_resources(profile: Profile) -> LocalResources:
    """Return the resources of this machine that a local run may use."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return LocalResources(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_bytes / 2**30,
        gpus=max((offer.gpus_per_node for offer in profile.gpu_classes.values()), default=0),
        parallel_units=profile.local.parallel_units,
    )


def job_statuses(jobs: Mapping[str, UnitJobStatus]) -> dict[str, JobStatus]:
    """Return the state of the units' jobs as the monitor takes it."""
    return {
        unit_id: JobStatus(job_id=job.job_id, state=job.state, reason=job.reason, log=job.log)
        for unit_id, job in jobs.items()
    }
