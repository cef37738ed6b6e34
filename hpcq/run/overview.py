"""Overview of all runs in a folder: state, size, age and GPU-hours of each, with one call to Slurm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import HpcqError, UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Outcome
from hpcq.core.work_records import UnitState
from hpcq.run.operations import query_status
from hpcq.run.record import find_runs, read_run
from hpcq.slurm.squeue import shared_listing


@dataclass(frozen=True, kw_only=True)
class RunOverview:
    """One run of a folder.

    Attributes:
        run: Name of the run.
        state: State of the run; None: its folder cannot be read, and `problem` says why.
        done: Units that are done.
        units: All units.
        disk_bytes: Size of all files in its folder and of its logs; checkpoints are shared by runs, and not included.
        gpu_hours: GPU-hours of all attempts so far, without those that were killed before they recorded their end.
        last_change: Time of the last change in its folder, in UTC, ISO 8601.
        problem: Why its folder cannot be read, or why Slurm did not respond; None: nothing.
    """

    run: str
    state: UnitState | None
    done: int
    units: int
    disk_bytes: int
    gpu_hours: float
    last_change: str
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row of `list --json`."""
        return asdict(self)


def overviews(folder: Path) -> list[RunOverview]:
    """Return the overview of each run in `folder`, the latest first.

    A run whose folder is damaged or was moved is listed with the problem.

    Raises:
        UserInputError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserInputError(f"{folder}: is not a folder. Name a folder of runs.")
    with shared_listing():
        found = [_overview(path) for path in find_runs(folder)]
    return sorted(found, key=lambda one: one.last_change, reverse=True)


def _overview(folder: Path) -> RunOverview:
    own, last_change_s = _usage(folder)
    try:
        record = read_run(str(folder))
        status = query_status(record)
        attempts = read_attempts(record.layout.attempts)
    except HpcqError as error:
        return RunOverview(
            run=folder.name,
            state=None,
            done=0,
            units=0,
            disk_bytes=own,
            gpu_hours=0.0,
            last_change=_time(last_change_s),
            problem=str(error),
        )
    return RunOverview(
        run=folder.name,
        state=status.state,
        done=status.counts.get(str(UnitState.DONE), 0),
        units=len(status.units),
        disk_bytes=own + _usage(record.layout.job_logs)[0],
        gpu_hours=round(gpu_hours(attempts, {one.id for one in status.units if one.state is UnitState.RUNNING}), 3),
        last_change=_time(last_change_s),
        problem=status.slurm_error,
    )


def gpu_hours(attempts: Mapping[str, Sequence[AttemptRecord]], running: Collection[str]) -> float:
    """Return the GPU-hours of attempts: the time of each, times the GPUs that it held.

    Args:
        attempts: Attempts by unit, the last one last.
        running: Units that are running; their last attempt counts until now. Another attempt without an end was killed
            before it could record it, and does not count: its end is unknown.
    """
    seconds = 0.0
    for unit, records in attempts.items():
        for one in records:
            is_running = unit in running and one is records[-1] and one.outcome is Outcome.RUNNING
            end = datetime.fromisoformat(one.end) if one.end else datetime.now(UTC) if is_running else None
            if end is not None:
                seconds += one.gpus * max(0.0, (end - datetime.fromisoformat(one.start)).total_seconds())
    return seconds / 3600


def _usage(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files below `folder`, and the time of the last change, in seconds since 1970."""
    total, last_s = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a running unit commits by renaming
                found = Path(parent, name).lstat()
                total, last_s = total + found.st_size, max(last_s, found.st_mtime)
    return total, last_s


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
