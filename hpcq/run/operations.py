"""Operations on an existing run: status, logs, cancellation, merge."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.outcomes import Launcher
from hpcq.core.permissions import make_private_folders
from hpcq.core.unit_ids import select_units
from hpcq.core.work_records import MergeWork, UnitKind, UnitState
from hpcq.launch.home_cluster import require_home_cluster
from hpcq.launch.job_status import all_jobs, cancel_jobs, unit_jobs_if_any, wait_until_ended
from hpcq.launch.local_control import interrupt_lock_owner, interrupt_units
from hpcq.launch.submissions import read_submissions, was_submitted
from hpcq.monitor.completed import completed_units
from hpcq.monitor.status import RunStatus, run_status
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.report.failed_variants import VariantFailure
from hpcq.run.record import MAX_LISTED_JOBS, RunRecord
from hpcq.run.status_with_jobs import status_with_jobs

if TYPE_CHECKING:
    from hpcq.plan.units import PlannedUnit
    from hpcq.run.submit import SubmitResult
    from hpcq.store import Results

_LOG = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 120.0


def query_status(record: RunRecord, *, patient: bool = False) -> RunStatus:
    """Return the state of the run. Slurm is called only if a result is missing on disk.

    Args:
        record: The run.
        patient: Wait for Slurm as long as other commands do.
    """
    completed = completed_units(record.layout, record.units)
    if len(completed) == len(record.units):
        return run_status(record.layout, record.units, {}, completed=completed)
    return status_with_jobs(record.layout, record.units, patient=patient)


def failed_variants(record: RunRecord) -> dict[str, VariantFailure]:
    """Return why variants have missing responses, by variant: failed and cancelled units first. Nothing is written.

    If Slurm does not respond, only failures that the units have recorded themselves are known.
    """
    layout = record.layout
    current = run_status(layout, record.units, {})
    if current.state is UnitState.DONE:
        return {}
    units = current.units
    try:
        units = run_status(layout, record.units, unit_jobs_if_any(layout, may_write=False)).units
    except SetupError:
        units = tuple(unit for unit in units if unit.failure)
    logs = {unit: path for path, unit in sorted(layout.unit_logs().items(), key=lambda item: _modified(item[0]))}
    found: dict[str, VariantFailure] = {}
    for unit in sorted(units, key=lambda unit: unit.state not in (UnitState.FAILED, UnitState.CANCELLED)):
        if unit.variant and unit.state is not UnitState.DONE:
            failure = VariantFailure(
                unit=unit.id,
                state=str(unit.state),
                failure=str(unit.failure) if unit.failure else None,
                reason=unit.reason,
                log=str(logs[unit.id]) if unit.id in logs else None,
            )
            found.setdefault(unit.variant, failure)
    return found


def finished_run(record: RunRecord) -> SubmitResult | None:
    """Return the result of submitting a run that is done, from its folder alone; None: something is missing.

    After a kill between the lock file and the plan, something may be.

    Raises:
        UserInputError: Another user can write to the run's folders.
    """
    if record.layout.unfinished_change.exists():
        return None
    status = query_status(record)
    if status.state is not UnitState.DONE:
        return None
    from hpcq.run.submit import SubmitResult

    make_private_folders(record.layout)
    return SubmitResult(
        layout=record.layout, is_synthetic=record.is_synthetic, arrays=(), submissions=(), status=status
    )


def log_files(record: RunRecord, unit: str | None = None) -> list[Path]:
    """Return the log files of the run's units, oldest first; for a unit that never started, the log of its job.

    Args:
        record: The run.
        unit: Name that selects units (`hpcq.core.unit_ids.select_units`); None for all units.

    Raises:
        UserInputError: The name selects no unit.
    """
    wanted = _selected(record, [] if unit is None else [unit])
    found = {path: name for path, name in record.layout.unit_logs().items() if name in wanted}
    started = set(found.values())
    for submission in read_submissions(record.layout):
        for index, name in enumerate(submission.units):
            path = submission.launcher_log(index)
            if name in wanted - started and path.is_file():
                found[path] = name
    return sorted(found, key=_modified)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def cancel_units(record: RunRecord, units: Sequence[str] = ()) -> list[str]:
    """Cancel the pending and running jobs of the run, and return when they have ended.

    Waiting for their end lets a following `resume` submit these units again.

    Args:
        record: The run.
        units: Names that select units (`hpcq.core.unit_ids.select_units`); empty for all units.

    Returns:
        Ids of the cancelled units.

    Raises:
        UserInputError: A name selects no unit, or the jobs are on another cluster.
        SetupError: A command on another host is running the units, or the jobs are still completing after
            `CANCEL_TIMEOUT_S`.
    """
    named = _selected(record, units)
    require_home_cluster(
        record.layout, lambda: {unit.id for unit in record.units} - completed_units(record.layout, record.units)
    )
    listed = all_jobs(record.layout) if was_submitted(record.layout) else []
    jobs = [(unit, job) for unit, job in listed if job.is_live and (unit in named or not units)]
    later = _later_units(record, named, listed) if units else []
    if jobs or later:
        from hpcq.launch.recovery.end_attempts import EndedJob, record_cancelled

        cancel_jobs(job for _, job in jobs)
        attempts = read_attempts(record.layout.attempts)
        for unit_id in later:
            ended = EndedJob(job_id="", launcher=Launcher.SLURM, node="", log="")
            record_cancelled(record.layout, unit_id, ended, attempts)
        for unit_id, job in jobs:
            if job.state is UnitState.PENDING:  # a running job records its cancellation itself
                ended = EndedJob(job_id=job.job_id, launcher=Launcher.SLURM, node="", log=job.log)
                record_cancelled(record.layout, unit_id, ended, attempts)
        wanted = {*later, *(unit for unit, _ in jobs)}
        ending = wait_until_ended(record.layout, (job for _, job in jobs), CANCEL_TIMEOUT_S)
        if ending:
            names = ", ".join(job.job_id for job in ending[:MAX_LISTED_JOBS])
            raise SetupError(
                f"Cancelled {len(wanted)} units, but {len(ending)} of their jobs are still completing ({names})."
                " Run `hpcq resume` after they have ended: it skips units with a running job. See `hpcq status`."
            )
        return sorted(wanted)
    current = run_status(record.layout, record.units, {})
    if not units and interrupt_lock_owner(record.layout):
        return [unit.id for unit in current.units if unit.state is not UnitState.DONE]
    return interrupt_units(record.layout, named)


def _later_units(record: RunRecord, named: Collection[str], jobs: Sequence[tuple[str, UnitJobStatus]]) -> list[str]:
    """Return the named units without a job that a live merge would submit later (`slurm.max_submitted_jobs`)."""
    live = {name for name, job in jobs if job.is_live}
    if not any(unit.id in live for unit in record.units if unit.kind is UnitKind.MERGE):
        return []
    last = dict(sorted(jobs, key=lambda item: item[1].is_live))
    return [
        unit.id
        for unit in run_status(record.layout, record.units, last).units
        if unit.id in named and unit.state is UnitState.WAITING and unit.kind is not UnitKind.MERGE
    ]


def merge_run(record: RunRecord, *, run_code: bool = False) -> dict[str, Any]:
    """Merge all committed responses on this machine and return the document of `merge --json`.

    Only the run's folder is read. A run of an earlier version has no record of its merge, and is planned again.

    Args:
        record: The run.
        run_code: Run code that the models wrote on this machine, although the run belongs to a cluster.

    Raises:
        UserInputError: The run has no units, another user can write to its folders, or the merge would run code.
        SetupError: The merge failed.
    """
    from hpcq.launch.build_array_spec import build_array_spec
    from hpcq.launch.local_launcher import LocalLauncher
    from hpcq.manifest.loader import load_schema
    from hpcq.manifest.lookups import cluster_profile
    from hpcq.plan.arrays import make_arrays
    from hpcq.run.load import load_run
    from hpcq.run.merge_record import read_merge_unit
    from hpcq.run.submit import local_resources
    from hpcq.store import read_results

    layout = record.layout
    if not record.units:
        raise UserInputError(
            f"{layout.folder}: this run has no units to evaluate, so there is nothing to merge. See `hpcq plan`."
        )
    unit = read_merge_unit(layout) or load_run(str(layout.folder)).plan.units[-1]
    if missing := _missing_data(unit):
        sentence = f"{', '.join(missing)}: the benchmark data are not on this file system"
        states = {one.id: one.state for one in query_status(record).units}
        if states.get(unit.id) is not UnitState.DONE:
            raise SetupError(
                f"{sentence}, but a merge needs them for the scores: run `hpcq stage {layout.manifest_lock}`, or"
                " restore them."
            )
        _LOG.warning("%s: the existing results of %s are shown, without a new merge.", sentence, layout.name)
        return _merge_document(layout.name, read_results(layout.results))
    manifest = load_schema(layout.manifest_lock)
    profile = cluster_profile(manifest)
    if running := [] if run_code or profile.scheduler == "local" else _tasks_with_code(unit):
        raise UserInputError(
            f"{', '.join(running)}: a merge runs code that the models wrote. `hpcq resume {layout.name}` merges in a"
            f" job; `hpcq merge {layout.name} --run-code` runs it on this machine, in a sandbox."
        )
    order = build_array_spec(layout.name, make_arrays([unit], profile)[0], profile, manifest.retries)
    make_private_folders(layout)
    outcomes = LocalLauncher(layout, local_resources(profile)).run([order])
    for outcome in outcomes.values():
        if outcome.state is not UnitState.DONE:
            raise SetupError(f"The merge failed: {outcome.reason}. See `hpcq logs {layout.name} merge`.")
    return _merge_document(layout.name, read_results(layout.results))


def _missing_data(merge: PlannedUnit) -> list[str]:
    """Return the names of the tasks without which the responses cannot be scored here."""
    from hpcq.stage.staged_tasks import is_data_present

    evaluations = merge.work.evaluations if isinstance(merge.work, MergeWork) else ()
    tasks = dict.fromkeys(task for one in evaluations if not one.is_synthetic for task in one.tasks)
    return [task.name for task in tasks if not is_data_present(task)]


def _tasks_with_code(merge: PlannedUnit) -> list[str]:
    evaluations = merge.work.evaluations if isinstance(merge.work, MergeWork) else ()
    return sorted({task.name for one in evaluations for task in one.tasks if task.runs_code})


def _merge_document(run: str, results: Results) -> dict[str, Any]:
    """Return the counts of a merge, its marks, and the number of tasks whose score is withheld, over all variants."""
    from hpcq.verify.marks import Mark

    marks = [(variant.variant, Mark.from_json(mark)) for variant in results.variants for mark in variant.marks or ()]
    withheld = {(variant, mark.task) for variant, mark in marks if mark.kind.withholds_score}
    return {
        "run": run,
        **results.merge,
        "withheld": len(withheld),
        "marks": [{"variant": variant, **mark.as_json()} for variant, mark in marks],
    }


def match_units(record: RunRecord, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the ids of the run's units that each name selects.

    Raises:
        UserInputError: A name selects no unit.
    """
    return select_units([unit.id for unit in record.units], names, _names_in_reports(record))


def _names_in_reports(record: RunRecord) -> dict[str, list[str]]:
    """Return the units by the names that reports give to variants, in lower case: a scheme, or a model and a scheme.

    A name that several variants have is left out: reports distinguish them by values that the plan does not have.
    """
    units: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in record.plan_document["units"]:
        if row["variant"]:
            parts = str(row["model"]).rstrip("/").split("/")
            models = {"/".join(parts[-count:]) for count in (1, 2, len(parts))}
            for name in (row["scheme"], *(f"{model} {row['scheme']}" for model in models)):
                for text in (name, f"{record.layout.name}: {name}"):
                    units[text.lower()][row["variant"]].append(row["id"])
    schemes = {str(row["scheme"]).lower() for row in record.plan_document["units"]}
    return {
        name: [unit_id for ids in variants.values() for unit_id in ids]
        for name, variants in units.items()
        if len(variants) == 1 or name in schemes
    }


def _selected(record: RunRecord, names: Sequence[str]) -> set[str]:
    """Return the ids that the names select; all ids without names."""
    if not names:
        return {unit.id for unit in record.units}
    return {unit_id for found in match_units(record, names).values() for unit_id in found}
