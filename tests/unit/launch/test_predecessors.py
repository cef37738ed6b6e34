"""What is written of attempts that left no last word, and what is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, now
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.launch.recovery.stale_attempts import SlurmJob, settle_predecessors
from hpcq.slurm.scontrol import JobDetails, read_job
from tests.slurm.rehearsal import layout_at

OWN = SlurmJob(job_id="9", restart=1)
FAILED = "JobId=8 JobState=FAILED Reason=None Restarts=0 ExitCode=71:0 EndTime=Unknown\n"


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run."""
    return layout_at(tmp_path)


def leave(layout: RunLayout, **changes: object) -> None:
    """Record an attempt of another job of Slurm's that has not said how it ended."""
    known: dict[str, object] = {
        "unit": "one",
        "attempt": 0,
        "job_id": "8",
        "node": "n1",
        "pid": 1,
        "start": now(),
        "launcher": "slurm",
    }
    new_attempt(layout.attempts, AttemptRecord(**{**known, **changes}))  # type: ignore[arg-type]


def settled(layout: RunLayout, told: JobDetails | SetupError | None) -> AttemptRecord:
    """The record as the next attempt leaves it, where Slurm says that of any other job."""

    def ask(_job_id: str) -> JobDetails | None:
        if isinstance(told, SetupError):
            raise told
        return told

    return settle_predecessors(layout, "one", Policy(), own=OWN, ask=ask)[-1]


def dead_process() -> str:
    """The identity of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = identity(process.pid)
    assert found is not None
    return found


def test_an_earlier_start_of_the_same_job_was_preempted(layout: RunLayout) -> None:
    """Slurm started the job again, and says nothing against the node (there is none here to ask)."""
    leave(layout, job_id="9", restart=0)
    record = settled(layout, None)
    assert (record.outcome, record.failure, record.decision) == ("failed", "preempted", "again")
    assert record.end is not None


def test_another_job_tells_by_its_exit_code(layout: RunLayout) -> None:
    """An attempt whose record could not be closed left with the code of its class."""
    leave(layout)
    assert (settled(layout, read_job(FAILED)).failure, settled(layout, None).decision) == ("out of memory", "smaller")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, read_job(FAILED.replace("FAILED", "RUNNING"))),
        ({}, read_job(FAILED.replace("FAILED", "COMPLETING"))),
        ({}, read_job(FAILED.replace("FAILED", "CANCELLED"))),
        ({}, SetupError("there is no scontrol")),
        ({"job_id": "9", "restart": 1}, None),
        ({"outcome": "interrupted"}, None),
        ({"outcome": "done"}, None),
        ({"outcome": "interrupted", "launcher": "local"}, None),
        ({"launcher": "local", "process": identity(os.getpid())}, None),
        ({"launcher": "local", "process": "another-host boot 1 1"}, None),
    ],
)
def test_what_may_live_and_what_a_user_ended_is_left_alone(
    layout: RunLayout, changes: dict[str, object], told: JobDetails | SetupError | None
) -> None:
    """Nothing is written without evidence."""
    leave(layout, **changes)
    record = settled(layout, told)
    assert (record.failure, record.decision) == (None, None)


def test_a_local_process_that_is_gone_was_killed(layout: RunLayout) -> None:
    """Its number may belong to another by now: its identity does not."""
    leave(layout, launcher="local", process=dead_process())
    assert settled(layout, None).failure == "killed"


def test_what_it_said_itself_stands(layout: RunLayout) -> None:
    """A failure that was recorded is only decided."""
    leave(layout, outcome="failed", failure="bad input", reason="no such scheme")
    record = settled(layout, None)
    assert (record.failure, record.reason, record.decision) == ("bad input", "no such scheme", "give up")


def test_one_that_finishes_late_spoils_nothing(layout: RunLayout) -> None:
    """A live attempt that was taken for dead writes its own record again, and no other's."""
    late = new_attempt(
        layout.attempts,
        AttemptRecord(unit="one", attempt=0, job_id="9", node="n1", pid=1, start=now(), launcher="slurm"),
    )
    settled(layout, None)
    newer = new_attempt(
        layout.attempts,
        AttemptRecord(unit="one", attempt=0, job_id="9", node="n2", pid=2, start=now(), launcher="slurm", restart=1),
    )
    late.update(outcome="done")
    newer.update(phase="answering")
    history = settle_predecessors(layout, "one", Policy(), own=OWN)
    assert [(one.attempt, one.outcome) for one in history] == [(1, "done"), (2, "running")]
    assert isinstance(late, Attempt)
