"""Operations on an existing run: status, logs, cancellation, merge."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.outcomes import Launcher
from hpcq.core.permissions import make_private_folders
from hpcq.core.unit_ids import select_units
from hpcq.core.work_records import MergeWork, UnitState
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import all_jobs, unit_jobs_if_any, wait_until_ended
from hpcq.launch.local_control import interrupt_lock_owner, interrupt_units
from hpcq.launch.local_launcher import LocalLauncher
from hpcq.launch.recovery.end_attempts import EndedJob, record_cancelled
from hpcq.launch.submissions import read_submissions, was_submitted
from hpcq.manifest.loader import load_schema
from hpcq.manifest.lookups import cluster_profile
from hpcq.monitor.status import RunStatus, run_status
from hpcq.plan.arrays import make_arrays
from hpcq.plan.units import PlannedUnit
from hpcq.report.failed_variants import VariantFailure
from hpcq.run.load import RunRecord, load_run
from hpcq.run.merge_record import read_merge_unit
from hpcq.run.status_with_jobs import status_with_jobs
from hpcq.run.submit import MAX_LISTED_JOBS, SubmitResult, local_resources
from hpcq.stage.staged_tasks import is_data_present
from hpcq.verify.marks import Mark

if TYPE_CHECKING:
    from hpcq.store import Results

_LOG = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 120.0


def query_status(record: RunRecord) -> RunStatus:
    """Return the state of the run. Slurm is called only if a result is missing on disk."""
    current = run_status(record.layout, record.units, {})
    if current.state is UnitState.DONE:
        return current
    return status_with_jobs(record.layout, record.units)


def failed_variants(record: RunRecord) -> dict[str, VariantFailure]:
    """Return why variants have missing responses, by variant. Nothing is written.

    If Slurm does not answer, only failures that the units have recorded themselves are known.
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
    for unit in units:
        if unit.variant and unit.state in (UnitState.FAILED, UnitState.CANCELLED):
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

    Raises:
        UserInputError: Another user can write to the run's folders.
    """
    status = query_status(record)
    if status.state is not UnitState.DONE:
        return None
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
        UserInputError: A name selects no unit.
        SetupError: A command on another host is running the units, or the jobs are still completing after
            `CANCEL_TIMEOUT_S`.
    """
    named = _selected(record, units)
    listed = all_jobs(record.layout) if was_submitted(record.layout) else []
    jobs = [(unit, job) for unit, job in listed if job.is_live and (unit in named or not units)]
    if jobs:
        from hpcq.slurm.squeue import cancel as cancel_jobs

        cancel_jobs(job.job_id for _, job in jobs)
        attempts = read_attempts(record.layout.attempts)
        for unit_id, job in jobs:
            if job.state is UnitState.PENDING:  # a running job records its cancellation itself
                ended = EndedJob(job_id=job.job_id, launcher=Launcher.SLURM, node="", log=job.log)
                record_cancelled(record.layout, unit_id, ended, attempts)
        wanted = {unit for unit, _ in jobs}
        ending = wait_until_ended(record.layout, (job for _, job in jobs), CANCEL_TIMEOUT_S)
        if ending:
            names = ", ".join(job.job_id for job in ending[:MAX_LISTED_JOBS])
            raise SetupError(
                f"Cancelled {len(wanted)} units, but {len(ending)} of their jobs are still completing ({names})."
                " Run `hpcq resume` after they have ended: it skips units with an active job. See `hpcq status`."
            )
        return sorted(wanted)
    current = run_status(record.layout, record.units, {})
    if not units and interrupt_lock_owner(record.layout):
        return [unit.id for unit in current.units if unit.state is not UnitState.DONE]
    return interrupt_units(record.layout, named)


def merge_run(record: RunRecord) -> dict[str, Any]:
    """Merge all committed responses on this machine and return the document of `merge --json`.

    Only the run's folder is read. A run of an earlier version has no record of its merge, and is planned again.

    Raises:
        UserInputError: The run has no units, or another user can write to its folders.
        SetupError: The merge failed.
    """
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
                f"{sentence}, and a merge scores with them: run `hpcq stage {layout.manifest_lock}`, or restore them."
            )
        _LOG.warning("%s: the existing results of %s are shown, without a new merge.", sentence, layout.name)
        return _merge_document(layout.name, read_results(layout.results))
    manifest = load_schema(layout.manifest_lock)
    profile = cluster_profile(manifest)
    order = build_array_spec(layout.name, make_arrays([unit], profile)[0], profile, manifest.retries)
    make_private_folders(layout)
    outcomes = LocalLauncher(layout, local_resources(profile)).run([order])
    for outcome in outcomes.values():
        if outcome.state is not UnitState.DONE:
            raise SetupError(f"The merge failed: {outcome.reason}. See `hpcq logs {layout.name} merge`.")
    return _merge_document(layout.name, read_results(layout.results))


def _missing_data(merge: PlannedUnit) -> list[str]:
    """Return the names of the tasks without which the responses cannot be scored here."""
    evaluations = merge.work.evaluations if isinstance(merge.work, MergeWork) else ()
    tasks = dict.fromkeys(task for one in evaluations if not one.is_synthetic for task in one.tasks)
    return [task.name for task in tasks if not is_data_present(task)]


def _merge_document(run: str, results: Results) -> dict[str, Any]:
    """Return the counts of a merge, its marks, and the number of tasks whose score is withheld, over all variants."""
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

    A model and a scheme that several variants have are no name: a report tells them apart by more than the plan has.
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
