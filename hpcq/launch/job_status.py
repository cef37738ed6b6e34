"""State in Slurm of each submitted unit: joins the queue (one squeue call) with the records of submissions."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hpcq.core.paths import RunLayout
from hpcq.core.work import UnitState
from hpcq.launch.array_spec import Submission
from hpcq.launch.submissions import read_submissions, recover_unrecorded, was_submitted
from hpcq.slurm.squeue import Element, QueueEntry, poll

_LAUNCH_FAILED = "launch failed requeued held"
_POLL_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class UnitJobStatus:
    """State of a unit's last job.

    Attributes:
        index: Index in the array. None: not an array (submitit submits a single unit as a plain job).
        state: None if Slurm no longer knows the job.
        slurm_state: Slurm's name of the state.
        log: Path of the output before the unit started.
    """

    array: str
    array_job_id: str
    index: int | None
    state: UnitState | None
    slurm_state: str | None = None
    reason: str | None = None
    log: str = ""

    @property
    def element(self) -> Element | str:
        """Argument for `squeue.cancel`: the element of an array, or the id of a plain job."""
        return self.array_job_id if self.index is None else (self.array_job_id, self.index)

    @property
    def job_id(self) -> str:
        """Job id as Slurm prints it: '100_7' for an element of an array."""
        return self.array_job_id if self.index is None else f"{self.array_job_id}_{self.index}"

    @property
    def is_live(self) -> bool:
        """Whether the job is pending or running."""
        return self.state in (UnitState.PENDING, UnitState.RUNNING)

    @property
    def is_held(self) -> bool:
        """Whether Slurm failed to start the job (failed prolog, faulty node) and holds it until it is released."""
        return self.state is UnitState.PENDING and (self.reason or "").endswith(_LAUNCH_FAILED)


def unit_jobs(layout: RunLayout) -> dict[str, UnitJobStatus]:
    """Return the state of the last job of each submitted unit.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    before = {submission.job_id for submission in read_submissions(layout)}
    queue = poll(layout.name)
    recover_unrecorded(layout, queue)
    submissions = read_submissions(layout)
    if {submission.job_id for submission in submissions} - before - {job_id for job_id, _ in queue}:
        queue = poll(layout.name)  # Slurm has accepted jobs after it answered
    found: dict[str, UnitJobStatus] = {}
    for submission in submissions:
        for index, unit in enumerate(submission.units):
            found[unit] = _unit_job_status(submission, index, queue.get((submission.job_id, index)))
    return found


def unit_jobs_if_any(layout: RunLayout) -> dict[str, UnitJobStatus]:
    """As `unit_jobs`, but without a call to Slurm if nothing was submitted."""
    return unit_jobs(layout) if was_submitted(layout) else {}


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
        left = [job for job in unit_jobs(layout).values() if job.job_id in wanted and job.is_live]
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


def _unit_job_status(submission: Submission, index: int, job: QueueEntry | None) -> UnitJobStatus:
    status = UnitJobStatus(
        array=submission.array,
        array_job_id=submission.job_id,
        index=index if len(submission.units) > 1 else None,
        state=None,
        log=str(submission.launcher_log(index)),
    )
    if job is None or (job.array, job.part) != (submission.array, submission.part):
        return status
    reason = f"{job.slurm_state}, {job.reason}" if job.reason else job.slurm_state
    return replace(status, state=job.state, slurm_state=job.slurm_state, reason=reason)
