"""Query of the last jobs of all units: one squeue call, joined with the records of submissions."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from hpcq.core.paths import RunLayout
from hpcq.launch.array_spec import Submission
from hpcq.launch.submissions import read_submissions, recover_unrecorded, was_submitted
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.slurm.jobs import SlurmJob
from hpcq.slurm.squeue import job_name, poll

_POLL_INTERVAL_S = 1.0


def unit_jobs(layout: RunLayout, *, may_write: bool = True, timeout_s: float | None = None) -> dict[str, UnitJobStatus]:
    """Return the state of the job of each submitted unit: of a pending or running one, else of the last one.

    Parameters and errors are those of `all_jobs`.
    """
    found: dict[str, UnitJobStatus] = {}
    for unit, job in all_jobs(layout, may_write=may_write, timeout_s=timeout_s):
        if unit not in found or job.is_live or not found[unit].is_live:
            found[unit] = job
    return found


def all_jobs(
    layout: RunLayout, *, may_write: bool = True, timeout_s: float | None = None
) -> list[tuple[str, UnitJobStatus]]:
    """Return each job of the run with the id of its unit, in the order of their submissions.

    Args:
        layout: Paths of the run.
        may_write: Write the records of submissions whose process died between sbatch and its record.
        timeout_s: Timeout of each call to Slurm.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    before = {submission.job_id for submission in read_submissions(layout)}
    queue = poll(layout.name, timeout_s)
    recovered = recover_unrecorded(layout, queue, may_write=may_write)
    submissions = [*read_submissions(layout), *(recovered if not may_write else ())]
    known = {job_id.partition("_")[0] for job_id in queue}
    if {submission.job_id for submission in submissions} - before - known:
        queue = poll(layout.name, timeout_s)  # Slurm has accepted jobs after it answered
    return [
        (unit, _unit_job_status(layout.name, submission, index, queue))
        for submission in submissions
        for index, unit in enumerate(submission.units)
    ]


def unit_jobs_if_any(
    layout: RunLayout, *, may_write: bool = True, timeout_s: float | None = None
) -> dict[str, UnitJobStatus]:
    """As `unit_jobs`, but without a call to Slurm if nothing was submitted."""
    return unit_jobs(layout, may_write=may_write, timeout_s=timeout_s) if was_submitted(layout) else {}


def wait_until_ended(layout: RunLayout, jobs: Iterable[UnitJobStatus], timeout_s: float) -> list[UnitJobStatus]:
    """Wait until Slurm has ended all `jobs`, for up to `timeout_s` seconds; return those that are still live.

    scancel returns immediately. Slurm then gives a job KillWait (30 s by default) before SIGKILL and runs the node's
    epilog; until that is complete it reports the job as running.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    deadline_s = time.monotonic() + timeout_s
    wanted = {job.job_id for job in jobs}
    while True:
        left = [job for _, job in all_jobs(layout) if job.job_id in wanted and job.is_live]
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(_POLL_INTERVAL_S)


def live_arrays(jobs: Mapping[str, UnitJobStatus]) -> dict[str, tuple[str, ...]]:
    """Return the ids of pending and running jobs by array."""
    ids: dict[str, set[str]] = defaultdict(set)
    for job in jobs.values():
        if job.is_live:
            ids[job.array].add(job.array_job_id)
    return {array: tuple(sorted(found)) for array, found in ids.items()}


def _unit_job_status(run: str, submission: Submission, index: int, queue: Mapping[str, SlurmJob]) -> UnitJobStatus:
    job_id = submission.element(index)
    job = queue.get(job_id)
    # A reinstalled cluster reuses job ids: the name tells whether the job is this submission's.
    is_own = job is not None and job.name == job_name(run, submission.array, submission.part)
    return UnitJobStatus(
        job_id=job_id,
        array=submission.array,
        log=str(submission.launcher_log(index)),
        job=job if is_own else None,
    )
