"""Parsing of `scontrol show job`; the lines are abridged output of Slurm 22.05."""

from __future__ import annotations

from datetime import datetime

import pytest

from hpcq.core.failures import Failure
from hpcq.launch.recovery.stale_attempts import failure_of_job
from hpcq.slurm.scontrol import parse_job, parse_pending

RUNNING = (
    "JobId=13 JobName=p3.sh UserId=root(0) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 "
    "ExitCode=0:0 StartTime=2026-11-23T04:24:42 EndTime=2026-11-23T04:25:04 PreemptTime=2026-11-23T04:24:44 "
    "Partition=a100 Command=/tmp/it's here/p3.sh\n"
)
ENDED = "JobId=18 JobState={state} Reason=X Restarts=0 ExitCode={code} EndTime=Unknown PreemptTime=None Partition=p\n"


def test_a_job_in_the_grace_time_of_a_preemption_is_detected() -> None:
    """Its end time is the end of the grace time, in local time."""
    job = parse_job(RUNNING)
    assert (job.job_id, job.state, job.restarts, job.is_preempted, job.partition) == ("13", "RUNNING", 2, True, "a100")
    assert job.end_time == datetime(2026, 11, 23, 4, 25, 4)  # noqa: DTZ001 (scontrol tells local time)


def test_times_in_another_format_are_unknown() -> None:
    """Observed with --disable-iso8601 and on other versions: a ValueError killed the thread that receives signals."""
    for end, preemption, restarts in (("N/A", "N/A", "N/A"), ("11/23-04:25:04", "None", ""), ("None", "(null)", "x")):
        fields = f"EndTime={end} PreemptTime={preemption} Restarts={restarts} ExitCode=N/A"
        job = parse_job(f"JobId=13 JobState=RUNNING Reason=None {fields}\n")
        assert (job.end_time, job.is_preempted, job.restarts, job.exit_code) == (None, False, 0, 0)


def test_pending_elements_are_listed_as_ranges() -> None:
    """Observed: squeue cut "7_[1,3,5,…]" at 64 characters, and these jobs were not kept off a faulty node."""
    rows = [f"7_{index}|hpcq:mine:a:0" for index in range(1, 100, 2)] + ["8|hpcq:mine:b:0", "9|other", "CLUSTER: x"]
    single, array = parse_pending("\n".join(rows), "mine")
    assert single == "8"
    assert array == f"7_[{','.join(str(index) for index in range(1, 100, 2))}]"


def test_an_element_of_an_array_has_its_arrays_id() -> None:
    """Slurm also gives each element a job id of its own, which no other command prints."""
    line = "JobId=19 ArrayJobId=17 ArrayTaskId=2 JobState=RUNNING Reason=None NodeList=h100-1 ExitCode=0:0\n"
    job = parse_job(line)
    assert (job.job_id, job.reason, job.node) == ("17_2", None, "h100-1")


@pytest.mark.parametrize(
    ("state", "code", "failure"),
    [
        ("TIMEOUT", "0:15", Failure.TIMEOUT),
        ("PREEMPTED", "0:15", Failure.PREEMPTED),
        ("NODE_FAIL", "0:0", Failure.NODE_FAULT),
        ("OUT_OF_MEMORY", "0:125", Failure.OUT_OF_MEMORY),
        ("FAILED", "65:0", Failure.INVALID_INPUT),
        ("FAILED", "74:0", Failure.FULL_DISK),
        ("FAILED", "77:0", Failure.MISSING_RESOURCE),
        ("FAILED", "0:9", Failure.KILLED),
        ("FAILED", "1:0", Failure.KILLED),
        ("COMPLETED", "0:0", Failure.KILLED),
        ("CANCELLED", "0:15", None),
        ("REVOKED", "0:0", None),
        ("PENDING", "0:0", None),
        ("NEW_WORD", "0:0", None),
        ("RUNNING", "0:0", None),
        ("COMPLETING", "0:9", None),
    ],
)
def test_an_ended_job_has_a_failure_class(state: str, code: str, failure: Failure | None) -> None:
    """From Slurm's state, else the exit code; None if the user ended the job, or if it may still have a process."""
    assert failure_of_job(parse_job(ENDED.format(state=state, code=code))) == failure
