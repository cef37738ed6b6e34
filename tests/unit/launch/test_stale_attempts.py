"""Stale attempts: which records are closed, with which failure, and which are not changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, utc_now
from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.recovery.stale_attempts import close_stale_attempts
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.scontrol import parse_job
from tests.slurm.synthetic_units import layout_at

OWN = SlurmJob(job_id="9", state=SlurmState.RUNNING, restarts=1)
FAILED = "JobId=8 JobState=FAILED Reason=None Restarts=0 ExitCode=71:0 EndTime=Unknown\n"


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run."""
    return layout_at(tmp_path)


def record_attempt(layout: RunLayout, **changes: object) -> None:
    """Record an attempt of another Slurm job without a recorded end."""
    known: dict[str, object] = {
        "unit": "one",
        "attempt": 0,
        "job_id": "8",
        "node": "n1",
        "pid": 1,
        "start": utc_now(),
        "launcher": Launcher.SLURM,
    }
    new_attempt(layout.attempts, AttemptRecord(**{**known, **changes}))  # type: ignore[arg-type]


def closed(layout: RunLayout, details: SlurmJob | SetupError | None) -> AttemptRecord:
    """Return the record after the next attempt has started, if Slurm reports `details` for all other jobs."""

    def query_job(_job_id: str) -> SlurmJob | None:
        if isinstance(details, SetupError):
            raise details
        return details

    return close_stale_attempts(layout, "one", RetryPolicy(), own=OWN, query_job=query_job)[-1]


def dead_process() -> str:
    """The identity of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = identity(process.pid)
    assert found is not None
    return found


def test_an_earlier_start_of_the_same_job_was_preempted(layout: RunLayout) -> None:
    """Slurm restarted the job and reports no fault of the node (there is no Slurm here)."""
    record_attempt(layout, job_id="9", restart=0)
    record = closed(layout, None)
    assert (record.outcome, record.failure, record.decision) == ("failed", "preempted", "retry")
    assert record.end is not None


def test_the_exit_code_of_another_job_gives_the_failure(layout: RunLayout) -> None:
    """An attempt that could not close its record exited with the code of its failure class."""
    record_attempt(layout)
    assert (closed(layout, parse_job(FAILED)).failure, closed(layout, None).decision) == (
        "out of memory",
        "retry smaller",
    )


@pytest.mark.parametrize(
    ("changes", "details"),
    [
        ({}, parse_job(FAILED.replace("FAILED", "RUNNING"))),
        ({}, parse_job(FAILED.replace("FAILED", "COMPLETING"))),
        ({}, parse_job(FAILED.replace("FAILED", "CANCELLED"))),
        ({}, SetupError("scontrol is missing")),
        ({"job_id": "9", "restart": 1}, None),
        ({"outcome": Outcome.INTERRUPTED}, None),
        ({"outcome": Outcome.DONE}, None),
        ({"outcome": Outcome.INTERRUPTED, "launcher": Launcher.LOCAL}, None),
        ({"launcher": Launcher.LOCAL, "process": identity(os.getpid())}, None),
        ({"launcher": Launcher.LOCAL, "process": "another-host boot 1 1"}, None),
    ],
)
def test_attempts_that_may_be_alive_or_that_the_user_ended_are_not_changed(
    layout: RunLayout, changes: dict[str, object], details: SlurmJob | SetupError | None
) -> None:
    """A record is closed only if its process is proven dead."""
    record_attempt(layout, **changes)
    record = closed(layout, details)
    assert (record.failure, record.decision) == (None, None)


def test_a_local_process_that_no_longer_exists_was_killed(layout: RunLayout) -> None:
    """Another process may have its pid, but not its identity."""
    record_attempt(layout, launcher=Launcher.LOCAL, process=dead_process())
    assert closed(layout, None).failure == "killed"


def test_a_recorded_failure_is_kept(layout: RunLayout) -> None:
    """Only the decision is added."""
    record_attempt(layout, outcome=Outcome.FAILED, failure=Failure.INVALID_INPUT, reason="no such scheme")
    record = closed(layout, None)
    assert (record.failure, record.reason, record.decision) == ("invalid input", "no such scheme", "failed permanently")


def test_a_late_attempt_changes_only_its_own_record(layout: RunLayout) -> None:
    """A live attempt that was considered dead rewrites its own record and no other."""
    late = new_attempt(
        layout.attempts,
        AttemptRecord(unit="one", attempt=0, job_id="9", node="n1", pid=1, start=utc_now(), launcher=Launcher.SLURM),
    )
    closed(layout, None)
    newer = new_attempt(
        layout.attempts,
        AttemptRecord(
            unit="one", attempt=0, job_id="9", node="n2", pid=2, start=utc_now(), launcher=Launcher.SLURM, restart=1
        ),
    )
    late.update(outcome=Outcome.DONE)
    newer.update(phase="answering")
    history = close_stale_attempts(layout, "one", RetryPolicy(), own=OWN)
    assert [(one.attempt, one.outcome) for one in history] == [(1, "done"), (2, "running")]
    assert isinstance(late, Attempt)
