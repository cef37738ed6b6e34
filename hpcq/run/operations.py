"""Operations on an existing run: status, logs, cancellation, merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.outcomes import Launcher
from hpcq.core.permissions import make_private_folders
from hpcq.core.unit_ids import select_units
from hpcq.core.work_records import UnitState
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.launch.job_status import unit_jobs_if_any, wait_until_ended
from hpcq.launch.local_control import interrupt_lock_owner, interrupt_units
from hpcq.launch.local_launcher import LocalLauncher
from hpcq.launch.recovery.end_attempts import EndedJob, record_cancelled
from hpcq.launch.submissions import read_submissions
from hpcq.monitor.status import RunStatus, run_status
from hpcq.plan.arrays import make_arrays
from hpcq.run.load import LoadedRun, RunRecord
from hpcq.run.submit import MAX_LISTED_JOBS, local_resources

CANCEL_TIMEOUT_S = 120.0


def query_status(record: RunRecord) -> RunStatus:
    """Return the state of the run. Slurm is called only if a result is missing on disk."""
    current = run_status(record.layout, record.units, {})
    if current.state is UnitState.DONE:
        return current
    return run_status(record.layout, record.units, unit_jobs_if_any(record.layout))


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
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


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
    jobs = {unit_id: job for unit_id, job in unit_jobs_if_any(record.layout).items() if job.is_live}
    wanted = {unit_id for unit_id in jobs if unit_id in named or not units}
    if wanted:
        from hpcq.slurm.squeue import cancel as cancel_jobs

        cancel_jobs(jobs[unit_id].job_id for unit_id in wanted)
        for unit_id in wanted:
            job = jobs[unit_id]
            if job.state is UnitState.PENDING:  # a running job records its cancellation itself
                ended = EndedJob(job_id=job.job_id, launcher=Launcher.SLURM, node="", log=job.log)
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


def merge_run(loaded: LoadedRun) -> dict[str, Any]:
    """Merge all committed responses on this machine and return the document of `merge --json`.

    Raises:
        UserInputError: The run has no units, or another user can write to its folders.
        SetupError: The merge failed.
    """
    from hpcq.store import read_results

    if not loaded.plan.units:
        raise UserInputError(
            f"{loaded.layout.folder}: this run has no units to evaluate, so there is nothing to merge. See `hpcq plan`."
        )
    unit = loaded.plan.units[-1]
    array = make_arrays([unit], loaded.profile)[0]
    order = build_array_spec(loaded.plan.run, array, loaded.profile, loaded.resolved.manifest.retries)
    make_private_folders(loaded.layout)
    outcomes = LocalLauncher(loaded.layout, local_resources(loaded.profile)).run([order])
    for outcome in outcomes.values():
        if outcome.state is not UnitState.DONE:
            raise SetupError(f"The merge failed: {outcome.reason}. See `hpcq logs {loaded.layout.name} merge`.")
    return {"run": loaded.plan.run, **read_results(loaded.layout.results).merge}


def match_units(record: RunRecord, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the ids of the run's units that each name selects.

    Raises:
        UserInputError: A name selects no unit.
    """
    return select_units([unit.id for unit in record.units], names)


def _selected(record: RunRecord, names: Sequence[str]) -> set[str]:
    """Return the ids that the names select; all ids without names."""
    if not names:
        return {unit.id for unit in record.units}
    return {unit_id for found in match_units(record, names).values() for unit_id in found}
