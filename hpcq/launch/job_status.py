"""Query of the last jobs of all units: one squeue call, joined with the records of submissions."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from hpcq.core.paths import RunLayout
from hpcq.launch.array_spec import Submission
from hpcq.launch.submissions import clusters, is_recent, read_submissions, recover_unrecorded, was_submitted
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.slurm import squeue
from hpcq.slurm.client import on_cluster
from hpcq.slurm.jobs import SlurmJob
from hpcq.slurm.scontrol import show_array
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
    before = read_submissions(layout)
    queues, recovered = dict[str | None, dict[str, SlurmJob]](), list[Submission]()
    for cluster in sorted(clusters(layout, before) or {None}, key=str):
        with on_cluster(cluster):
            queues[cluster] = poll(layout.name, timeout_s)
        recovered += recover_unrecorded(layout, queues[cluster], cluster=cluster, may_write=may_write)
    submissions = [*read_submissions(layout), *(recovered if not may_write else ())]
    known = {(cluster, job_id.partition("_")[0]) for cluster, queue in queues.items() for job_id in queue}
    known |= {(one.cluster, one.job_id) for one in before}
    for cluster in {one.cluster for one in submissions if (one.cluster, one.job_id) not in known}:
        with on_cluster(cluster):
            queues[cluster] = poll(layout.name, timeout_s)  # Slurm has accepted jobs after it answered
    _ask_for_unlisted(submissions, queues, timeout_s)
    return [
        (unit, _unit_job_status(layout.name, submission, index, queues[submission.cluster]))
        for submission in submissions
        for index, unit in enumerate(submission.units)
    ]


def _ask_for_unlisted(
    submissions: Iterable[Submission], queues: Mapping[str | None, dict[str, SlurmJob]], timeout_s: float | None
) -> None:
    """Add the jobs of recent submissions that squeue does not list: where sites cache its output, it is minutes old."""
    listed = {(cluster, job_id.partition("_")[0]) for cluster, queue in queues.items() for job_id in queue}
    for one in submissions:
        if (one.cluster, one.job_id) not in listed and is_recent(one):
            with on_cluster(one.cluster):
                queues[one.cluster].update(show_array(one.job_id, timeout_s))


def unit_jobs_if_any(
    layout: RunLayout, *, may_write: bool = True, timeout_s: float | None = None
) -> dict[str, UnitJobStatus]:
    """As `unit_jobs`, but without a call to Slurm if nothing was submitted."""
    return unit_jobs(layout, may_write=may_write, timeout_s=timeout_s) if was_submitted(layout) else {}


def cancel_jobs(jobs: Iterable[UnitJobStatus], *, only_pending: bool = False) -> None:
    """Cancel `jobs`, by one call per cluster.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    ids: dict[str | None, list[str]] = defaultdict(list)
    for job in jobs:
        ids[job.cluster].append(job.job_id)
    for cluster, found in ids.items():
        with on_cluster(cluster):
            squeue.cancel(found, only_pending=only_pending)


def wait_until_ended(layout: RunLayout, jobs: Iterable[UnitJobStatus], timeout_s: float) -> list[UnitJobStatus]:
    """Wait until Slurm has ended all `jobs`, for up to `timeout_s` seconds; return those that are still live.

    scancel returns immediately. Slurm then gives a job KillWait (30 s by default) before SIGKILL and runs the node's
    epilog; until that is complete it reports the job as running.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    deadline_s = time.monotonic() + timeout_s
    wanted = {(job.cluster, job.job_id) for job in jobs}
    while True:
        left = [job for _, job in all_jobs(layout) if (job.cluster, job.job_id) in wanted and job.is_live]
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
        cluster=submission.cluster,
        home=submission.home,
    )
