"""Submission of a run: take its lock, run the checks, write its folder, call the launcher.

`plan` needs no launcher: they are imported where a run is submitted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import JobLimitError, SetupError, UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import check_programs, make_private_folders, trust_of
from hpcq.core.run_lock import run_lock
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind
from hpcq.launch.array_spec import Submission
from hpcq.launch.home_cluster import require_home_cluster
from hpcq.launch.job_status import live_arrays, unit_jobs_if_any
from hpcq.manifest.profiles import Profile
from hpcq.monitor.completed import completed_units
from hpcq.monitor.status import RunStatus, run_status
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.plan_json import estimated_gpu_hours, plan_document
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.units import PlannedArray
from hpcq.run.class_changes import class_notes
from hpcq.run.load import LoadedRun
from hpcq.run.next_submission import NextSubmission, next_submission
from hpcq.run.outdated_jobs import find_outdated_jobs
from hpcq.run.partition_checks import partition_warnings
from hpcq.run.plan_change import check_plan_change, keep_reduced_evaluations
from hpcq.run.portions import free_jobs, no_room_message, replace_merges
from hpcq.run.preflight import check_known_names, check_submittable, gpu_count
from hpcq.run.record import MAX_LISTED_JOBS
from hpcq.run.slurm_notes import slurm_notes
from hpcq.run.staging import missing_inputs, prepare_staging
from hpcq.run.status_with_jobs import status_with_jobs
from hpcq.run.stuck_jobs import cancel_stuck_jobs
from hpcq.run.write_run import check_unchanged_run, write_run
from hpcq.slurm.client import on_cluster
from hpcq.stage.progress import SilentReporter, StageReporter

if TYPE_CHECKING:
    from hpcq.launch.local_launcher import LocalResources

_LOG = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0

StatusCallback = Callable[[RunStatus], None]
"""Receives the status of a run about once per second while it runs."""


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """Result of `plan`.

    Attributes:
        loaded: The run as resolved and planned.
        status: State of each planned unit.
        arrays: Arrays that `submit` would submit now, in this order.
        document: The document of `plan --json`.
    """

    loaded: LoadedRun = field(repr=False)
    status: RunStatus
    arrays: tuple[PlannedArray, ...] = field(repr=False)
    document: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SubmitResult:
    """Result of `submit`.

    Attributes:
        layout: Paths of the run.
        is_synthetic: Whether its responses are synthetic.
        arrays: Arrays that were missing: those that `plan` showed.
        submissions: Arrays accepted by Slurm, in parts of at most MaxArraySize; empty with the local scheduler.
        status: State of the run after the submission.
        later_units: Number of units that the merge submits later, because the number of jobs is limited.
    """

    layout: RunLayout = field(repr=False)
    is_synthetic: bool
    arrays: tuple[PlannedArray, ...] = field(repr=False)
    submissions: tuple[Submission, ...]
    status: RunStatus
    later_units: int = 0


def plan_run(loaded: LoadedRun) -> PlanResult:
    """Plan without writing or submitting anything: the arrays are those that `submit` would submit now.

    A note says what the plan changes in an existing run, or why `submit` refuses it.

    Slurm is asked for the run's jobs if there are any. If it does not respond, the field `slurm_error` of the document
    has the reason, and units whose jobs are pending or running count as missing.

    Raises:
        UserInputError: The hub has no such repository or revision.
    """
    check_known_names(loaded)
    try:
        jobs, free = unit_jobs_if_any(loaded.layout, may_write=False), free_jobs(loaded)
    except SetupError as error:
        planned = _plan_result(loaded, {}, slurm_error=str(error))
    else:
        planned = _plan_result(loaded, jobs, free=free)
    try:
        note = check_plan_change(loaded)
    except UserInputError as error:
        note = str(error)
    planned.document["notes"] += [note] if note else []
    return planned


def check_run(loaded: LoadedRun) -> PlanResult:
    """Plan, and run all checks of `submit_run` without submitting anything.

    Raises:
        UserInputError: Same reasons as in `submit_run`.
        SetupError: Same reasons as in `submit_run`.
    """
    check_submittable(loaded)
    note = check_plan_change(loaded)
    _require_home_cluster(loaded)
    jobs = unit_jobs_if_any(loaded.layout, may_write=False)
    _refuse_unplanned_jobs(loaded, jobs)
    planned = _plan_result(loaded, jobs, free=free_jobs(loaded))
    planned.document["notes"] += [note] if note else []
    if loaded.on_slurm:
        planned.document["notes"] += partition_warnings(loaded.profile, planned.arrays)
    return planned


def _plan_result(
    loaded: LoadedRun,
    jobs: Mapping[str, UnitJobStatus],
    *,
    free: int | None = None,
    slurm_error: str | None = None,
) -> PlanResult:
    following = next_submission(loaded, jobs, free=free)
    states = {unit.id: unit.state for unit in following.status.units}
    timeline = simulate_estimates(following.missing, loaded.profile)
    document = plan_document(loaded.plan, following.arrays, states, timeline, missing=following.missing)
    return PlanResult(
        loaded=loaded,
        status=following.status,
        arrays=following.arrays,
        document={
            **document,
            "notes": [*document["notes"], *slurm_notes(loaded), *class_notes(loaded, following.status)],
            "slurm_error": slurm_error,
            "not_staged": [str(each.item) for each in missing_inputs(loaded)],
        },
    )


def estimate_gpu_hours(loaded: LoadedRun, *, retry_failed: bool = False) -> dict[str, float]:
    """Estimate the GPU-hours per GPU class that `submit` would add now. Pending and running jobs are not counted.

    Raises:
        SetupError: Slurm does not respond.
    """
    jobs = unit_jobs_if_any(loaded.layout, may_write=False)
    return estimated_gpu_hours(next_submission(loaded, jobs, retry_failed=retry_failed).missing)


def submit_run(
    loaded: LoadedRun,
    *,
    retry_failed: bool = False,
    unattended: bool = False,
    on_status: StatusCallback | None = None,
    reporter: StageReporter | None = None,
) -> SubmitResult:
    """Submit all missing units to Slurm and return; with the local scheduler, run them and return when they have ended.

    Args:
        loaded: The run.
        retry_failed: Also submit units that have failed permanently.
        unattended: Called by a job, not by the user: skip units that are on hold until the user fixes their cause.
        on_status: Called about once per second with the state of a local run.
        reporter: Receives reports of what is staged before the submission.

    Raises:
        UserInputError: A unit cannot run, the run's folder belongs to another manifest, jobs of an earlier plan are
            still pending or running, or another user can write to the run's folders.
        SetupError: A model, an environment or Slurm is missing, or another command has changed the run since.
        JobLimitError: No further job can be submitted now.
    """
    check_submittable(loaded)
    change = check_plan_change(loaded)
    make_private_folders(loaded.layout)
    if not unattended:  # compute nodes have no network
        prepare_staging(loaded, reporter or SilentReporter())
    with run_lock(loaded.layout):
        jobs = _replace_plan(loaded, change, unattended=unattended)
        following = next_submission(
            loaded, jobs, retry_failed=retry_failed, unattended=unattended, free=free_jobs(loaded)
        )
        for note in class_notes(loaded, following.status):
            _LOG.warning("%s", note)
        if following.later_units and not following.arrays and (unattended or not _has_live_merge(loaded, jobs)):
            raise JobLimitError(no_room_message(loaded.profile))
        replace_merges(loaded, following.arrays)
        if not unattended:
            _release_later_units(loaded, following)
        submissions = _start(loaded, following.arrays, jobs, on_status)
    status = status_with_jobs(loaded.layout, loaded.plan.units)
    return SubmitResult(
        layout=loaded.layout,
        is_synthetic=loaded.is_synthetic,
        arrays=following.arrays,
        submissions=submissions,
        status=status,
        later_units=following.later_units,
    )


def _replace_plan(loaded: LoadedRun, change: str | None, *, unattended: bool) -> Mapping[str, UnitJobStatus]:
    """Write the run's lock file and plan, and return its jobs. The caller has the run's lock.

    Args:
        loaded: The run.
        change: What the plan changes in the run; None: nothing.
        unattended: Called by a job: jobs that cannot start are left to the user.
    """
    from hpcq.launch.local_control import stop_orphans

    check_unchanged_run(loaded)
    _require_home_cluster(loaded)
    jobs = unit_jobs_if_any(loaded.layout)
    _refuse_unplanned_jobs(loaded, jobs)
    if loaded.on_slurm and not unattended:
        jobs = cancel_stuck_jobs(loaded.layout, loaded.plan.units, jobs)
    stop_orphans(loaded.layout)
    if change:
        keep_reduced_evaluations(loaded)
    write_run(loaded, find_outdated_jobs(loaded.layout, loaded.plan, jobs))
    if change:
        _LOG.warning("%s", change)
        # A job that has ended since, and a merge that has then read the earlier plan, submit nothing more.
        jobs = unit_jobs_if_any(loaded.layout)
    return jobs


def _require_home_cluster(loaded: LoadedRun) -> None:
    units = loaded.plan.units
    require_home_cluster(loaded.layout, lambda: {unit.id for unit in units} - completed_units(loaded.layout, units))


def _start(
    loaded: LoadedRun,
    arrays: Sequence[PlannedArray],
    jobs: Mapping[str, UnitJobStatus],
    on_status: StatusCallback | None,
) -> tuple[Submission, ...]:
    """Submit `arrays` and return the submissions; with the local scheduler, run them and return none."""
    from hpcq.launch.build_array_spec import build_array_spec
    from hpcq.launch.job_script import cached_programs
    from hpcq.launch.package_snapshot import forget_snapshots

    orders = [
        build_array_spec(loaded.plan.run, array, loaded.profile, loaded.resolved.manifest.retries) for array in arrays
    ]
    programs = [path for order in orders for path in cached_programs(order.environment)]
    check_programs(dict.fromkeys(programs), trust_of(loaded.layout))
    if not any(job.is_live for job in jobs.values()):
        forget_snapshots(loaded.layout)
    if loaded.on_slurm:
        from hpcq.launch.slurm_launcher import SlurmLauncher
        from hpcq.slurm.squeue import release

        cluster = loaded.profile.slurm.cluster
        with on_cluster(cluster):
            release(job.job_id for job in jobs.values() if job.is_held)
        submissions = SlurmLauncher(loaded.layout, cluster).submit(orders, live_arrays(jobs))
        for warning in partition_warnings(loaded.profile, arrays):
            _LOG.warning("%s", warning)
        return tuple(submissions)
    if orders:
        from hpcq.launch.local_launcher import LocalLauncher

        report_status = _status_reporter(loaded, on_status) if on_status else _no_status
        LocalLauncher(loaded.layout, local_resources(loaded.profile), on_poll=report_status).run(orders)
    return ()


def _release_later_units(loaded: LoadedRun, following: NextSubmission) -> None:
    """Let the merge submit the units of later portions that are on hold: the user has resumed them with the others."""
    later = {unit.id for array in following.missing for unit in array.units}
    later -= {unit.id for array in following.arrays for unit in array.units}
    held = [unit.id for unit in following.status.units if unit.is_on_hold and unit.id in later]
    if held:
        from hpcq.launch.recovery.end_attempts import record_released

        attempts = read_attempts(loaded.layout.attempts)
        for unit_id in held:
            record_released(loaded.layout, unit_id, attempts)


def _has_live_merge(loaded: LoadedRun, jobs: Mapping[str, UnitJobStatus]) -> bool:
    """Whether a merge is pending or running, which will submit what is missing."""
    return any(unit.kind is UnitKind.MERGE and unit.id in jobs and jobs[unit.id].is_live for unit in loaded.plan.units)


def _no_status() -> None:
    pass


def _status_reporter(loaded: LoadedRun, on_status: StatusCallback) -> Callable[[], None]:
    """Return a function that calls `on_status`, at most once per `STATUS_INTERVAL_S`."""
    reported_s = -STATUS_INTERVAL_S

    def report_status() -> None:
        nonlocal reported_s
        if time.monotonic() - reported_s >= STATUS_INTERVAL_S:
            reported_s = time.monotonic()
            on_status(run_status(loaded.layout, loaded.plan.units, {}))

    return report_status


def _refuse_unplanned_jobs(loaded: LoadedRun, jobs: Mapping[str, UnitJobStatus]) -> None:
    """Refuse to submit while jobs of units that the plan does not have are pending or running.

    With another number of shards, both would answer the same requests. Jobs on another cluster are refused too, because
    no job can depend on them. With the local scheduler, every pending or running Slurm job of the run is refused.
    """
    planned = {unit.id for unit in loaded.plan.units} if loaded.on_slurm else set()
    cluster = loaded.profile.slurm.cluster
    unplanned = {
        unit_id: job.job_id
        for unit_id, job in jobs.items()
        if job.is_live and (unit_id not in planned or (cluster and job.cluster != cluster))
    }
    if unplanned:
        job_ids = sorted(unplanned.values())
        listed = ", ".join([*job_ids[:MAX_LISTED_JOBS], *(["…"] if len(job_ids) > MAX_LISTED_JOBS else [])])
        subjects = {unit.subject for unit_id in unplanned if (unit := UnitId.parse(unit_id))}
        kept = {unit.variant_id for unit in loaded.plan.units}
        removed = " ".join(sorted(subjects)) if loaded.on_slurm and subjects.isdisjoint(kept) else ""
        raise UserInputError(
            f"{loaded.layout.folder}: jobs of an earlier submission are still pending or running ({listed}): wait for"
            f" them, or run `hpcq cancel {' '.join(filter(None, (loaded.layout.name, removed)))}`."
        )


def local_resources(profile: Profile) -> LocalResources:
    """Return the resources of this machine that a local run may use."""
    from hpcq.core.host_memory import GIB, host_memory_bytes
    from hpcq.launch.local_launcher import LocalResources
    from hpcq.launch.visible_gpus import visible_gpus

    return LocalResources(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=host_memory_bytes() / GIB,
        gpus=visible_gpus(os.environ, gpu_count(profile)),
        parallel_units=profile.local.parallel_units,
    )
