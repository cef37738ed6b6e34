"""Submission of a run: take its lock, run the checks, write its folder, call the launcher."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.host_memory import GIB, host_memory_bytes
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import make_private_folders
from hpcq.core.run_lock import run_lock
from hpcq.launch.array_spec import Submission
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import live_arrays, unit_jobs_if_any
from hpcq.launch.local_control import stop_orphans
from hpcq.launch.local_launcher import LocalLauncher, LocalResources
from hpcq.launch.visible_gpus import visible_gpus
from hpcq.manifest.profiles import Profile
from hpcq.monitor.status import RunStatus, run_status
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.plan.plan_json import estimated_gpu_hours, plan_document
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.units import PlannedArray
from hpcq.run.load import LoadedRun, check_replaceable_plan, write_run
from hpcq.run.next_submission import next_submission
from hpcq.run.preflight import check_known_names, check_submittable, gpu_count
from hpcq.run.staging import missing_inputs, prepare_staging
from hpcq.run.status_with_jobs import status_with_jobs
from hpcq.slurm.environment import sbatch_options
from hpcq.stage.progress import SilentReporter, StageReporter

_LOG = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
MAX_LISTED_JOBS = 3

StatusCallback = Callable[[RunStatus], None]
"""Receives the status of a run now and then while it runs."""


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
    """

    layout: RunLayout = field(repr=False)
    is_synthetic: bool
    arrays: tuple[PlannedArray, ...] = field(repr=False)
    submissions: tuple[Submission, ...]
    status: RunStatus


def plan_run(loaded: LoadedRun) -> PlanResult:
    """Plan without writing or submitting anything: the arrays are those that `submit` would submit now.

    If the run's folder belongs to a run with other settings, which `submit` refuses, a note says so.

    Slurm is asked for the run's jobs if there are any. If it does not answer, the field `slurm_error` of the document
    has the reason, and units whose jobs are pending or running count as missing.

    Raises:
        UserInputError: The hub has no such repository or revision.
    """
    check_known_names(loaded)
    try:
        jobs = unit_jobs_if_any(loaded.layout, may_write=False)
    except SetupError as error:
        planned = _plan_result(loaded, {}, slurm_error=str(error))
    else:
        planned = _plan_result(loaded, jobs)
    try:
        note = check_replaceable_plan(loaded)
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
    check_replaceable_plan(loaded)
    jobs = unit_jobs_if_any(loaded.layout, may_write=False)
    _refuse_unplanned_jobs(loaded, jobs)
    return _plan_result(loaded, jobs)


def _plan_result(loaded: LoadedRun, jobs: Mapping[str, UnitJobStatus], *, slurm_error: str | None = None) -> PlanResult:
    following = next_submission(loaded, jobs)
    states = {unit.id: unit.state for unit in following.status.units}
    timeline = simulate_estimates(following.arrays, loaded.profile)
    document = plan_document(loaded.plan, following.arrays, states, timeline)
    return PlanResult(
        loaded=loaded,
        status=following.status,
        arrays=following.arrays,
        document={
            **document,
            "notes": [*document["notes"], *_shell_notes(loaded)],
            "slurm_error": slurm_error,
            "not_staged": [str(each.item) for each in missing_inputs(loaded)],
        },
    )


def _shell_notes(loaded: LoadedRun) -> list[str]:
    """Return what the submitting shell changes, and what of it has no effect."""
    if not loaded.on_slurm:
        return []
    used = loaded.profile.from_shell
    notes = [str(setting) for setting in used]
    ignored = sorted(sbatch_options() - {setting.variable for setting in used})
    if ignored:
        notes.append(f"{', '.join(ignored)}: not passed on to Slurm, because the cluster profile decides.")
    return notes


def estimate_gpu_hours(loaded: LoadedRun, *, retry_failed: bool = False) -> dict[str, float]:
    """Estimate the GPU-hours per GPU class that `submit` would add now. Pending and running jobs are not counted.

    Raises:
        SetupError: Slurm does not answer.
    """
    jobs = unit_jobs_if_any(loaded.layout, may_write=False)
    return estimated_gpu_hours(next_submission(loaded, jobs, retry_failed=retry_failed).arrays)


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
        SetupError: A model, an environment or Slurm is missing.
    """
    check_submittable(loaded)
    if note := check_replaceable_plan(loaded):
        _LOG.warning("%s", note)
    make_private_folders(loaded.layout)
    if not unattended:  # compute nodes have no network
        prepare_staging(loaded, reporter or SilentReporter())
    with run_lock(loaded.layout):
        jobs = unit_jobs_if_any(loaded.layout)
        _refuse_unplanned_jobs(loaded, jobs)
        stop_orphans(loaded.layout)
        write_run(loaded)
        arrays = next_submission(loaded, jobs, retry_failed=retry_failed, unattended=unattended).arrays
        orders = [
            build_array_spec(loaded.plan.run, array, loaded.profile, loaded.resolved.manifest.retries)
            for array in arrays
        ]
        submissions: tuple[Submission, ...] = ()
        if loaded.on_slurm:
            from hpcq.launch.slurm_launcher import SlurmLauncher
            from hpcq.slurm.squeue import release

            release(job.job_id for job in jobs.values() if job.is_held)
            submissions = tuple(SlurmLauncher(loaded.layout).submit(orders, live_arrays(jobs)))
        elif orders:
            report_status = _status_reporter(loaded, on_status) if on_status else _no_status
            LocalLauncher(loaded.layout, local_resources(loaded.profile), on_poll=report_status).run(orders)
    status = status_with_jobs(loaded.layout, loaded.plan.units)
    return SubmitResult(
        layout=loaded.layout,
        is_synthetic=loaded.is_synthetic,
        arrays=arrays,
        submissions=submissions,
        status=status,
    )


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


def local_resources(profile: Profile) -> LocalResources:
    """Return the resources of this machine that a local run may use."""
    return LocalResources(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=host_memory_bytes() / GIB,
        gpus=visible_gpus(os.environ, gpu_count(profile)),
        parallel_units=profile.local.parallel_units,
    )
