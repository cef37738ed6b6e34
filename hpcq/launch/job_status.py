"""Units as Slurm sees them: what the queue says of each unit that was handed over, by one call to Slurm.

Joins the queue with the records of submissions. Knows neither plan nor store.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hpcq.core.paths import RunLayout
from hpcq.core.work import State
from hpcq.launch.array_spec import Submission
from hpcq.launch.submissions import read_submissions, record_lost, was_handed_over
from hpcq.slurm.squeue import Element, JobState, poll

_LAUNCH_FAILED = "launch failed requeued held"
_LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class UnitJobView:
    """The last job of a unit. index None: it is a plain job, as submitit makes of a unit that is alone in its array.

    state None: Slurm knows it no more. slurm_state: Slurm's own word. log: what it printed before the unit began.
    """

    array: str
    array_job_id: str
    index: int | None
    state: State | None
    slurm_state: str | None = None
    reason: str | None = None
    log: str = ""

    @property
    def element(self) -> Element | str:
        """What scancel must be told: the element of an array, or the plain job."""
        return self.array_job_id if self.index is None else (self.array_job_id, self.index)

    @property
    def job_id(self) -> str:
        """As Slurm writes it."""
        return self.array_job_id if self.index is None else f"{self.array_job_id}_{self.index}"

    @property
    def is_live(self) -> bool:
        """It waits or runs."""
        return self.state in (State.PENDING, State.RUNNING)

    @property
    def is_held(self) -> bool:
        """Slurm could not start it (a prolog that failed, a node in disorder) and lets it wait until it is released."""
        return self.state is State.PENDING and (self.reason or "").endswith(_LAUNCH_FAILED)


def unit_jobs(layout: RunLayout) -> dict[str, UnitJobView]:
    """The last job of every unit that was handed over.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    queue = poll(layout.name)
    record_lost(layout, queue)
    found: dict[str, UnitJobView] = {}
    for submission in read_submissions(layout):
        for index, unit in enumerate(submission.units):
            found[unit] = _view(submission, index, queue.get((submission.job_id, index)))
    return found


def unit_jobs_if_any(layout: RunLayout) -> dict[str, UnitJobView]:
    """As `unit_jobs`; where nothing was ever handed to Slurm, it is not asked."""
    return unit_jobs(layout) if was_handed_over(layout) else {}


def wait_until_ended(layout: RunLayout, jobs: Iterable[UnitJobView], timeout_s: float) -> list[UnitJobView]:
    """Wait, `timeout_s` at most, until Slurm has ended every one of `jobs`; those that have not ended by then.

    scancel returns at once. Slurm then leaves a job KillWait (30 s by default) before it kills, and after that runs
    the node's epilog, and until all is over it says that the job runs.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    deadline_s = time.monotonic() + timeout_s
    wanted = {job.job_id for job in jobs}
    while True:
        left = [job for job in unit_jobs(layout).values() if job.job_id in wanted and job.is_live]
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(_LOOK_INTERVAL_S)


def live_arrays(jobs: Mapping[str, UnitJobView]) -> dict[str, tuple[str, ...]]:
    """Job ids, by array, of what waits or runs."""
    ids: dict[str, set[str]] = defaultdict(set)
    for job in jobs.values():
        if job.is_live:
            ids[job.array].add(job.array_job_id)
    return {array: tuple(sorted(found)) for array, found in ids.items()}


def _view(submission: Submission, index: int, job: JobState | None) -> UnitJobView:
    view = UnitJobView(
        array=submission.array,
        array_job_id=submission.job_id,
        index=index if len(submission.units) > 1 else None,
        state=None,
        log=str(submission.launcher_log(index)),
    )
    if job is None or (job.array, job.part) != (submission.array, submission.part):
        return view
    reason = f"{job.slurm_state}, {job.reason}" if job.reason else job.slurm_state
    return replace(view, state=job.state, slurm_state=job.slurm_state, reason=reason)
