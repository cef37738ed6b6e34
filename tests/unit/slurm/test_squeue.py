"""Parsing of squeue's output, arguments of scancel, and errors of clients."""

from __future__ import annotations

import pytest

from hpcq.core.errors import SetupError
from hpcq.core.work_records import UnitState
from hpcq.slurm import client, squeue
from hpcq.slurm.jobs import SlurmState

LISTING = """\
12|3|PENDING|0||JobArrayTaskLimit|hpcq:mine:evaluate-h100-abc:0|/runs/mine|
12|0|RUNNING|2|h100-1|None|hpcq:mine:evaluate-h100-abc:0|/runs/mine|
13|N/A|OUT_OF_MEMORY|0|h100-2|OutOfMemory|hpcq:mine:merge-cpu-def:1|/runs/a|b|
14|N/A|RUNNING|0|h100-2|None|hpcq:mine-too:merge-cpu-def:0|/runs/mine-too|
15|N/A|RUNNING|0|h100-2|None|another user's job|(null)|
16|1|COMPLETING|0|h100-2|None|hpcq:mine:judge-h100-abc:0|(null)|
"""


def test_a_listing_has_one_entry_per_element() -> None:
    """Keys are job ids in Slurm's notation; jobs of other runs and other users are skipped."""
    jobs = squeue.parse_queue(LISTING, "mine")
    assert {job_id: job.state.unit_state for job_id, job in jobs.items()} == {
        "12_3": UnitState.PENDING,
        "12_0": UnitState.RUNNING,
        "13": UnitState.FAILED,
        "16_1": UnitState.RUNNING,
    }
    assert list(jobs) == [job.job_id for job in jobs.values()]


def test_an_entry_has_slurms_fields() -> None:
    """State, reason, node, restarts and submission; fields without a value are None."""
    jobs = squeue.parse_queue(LISTING, "mine")
    running = jobs["12_0"]
    assert (running.reason, running.node, running.restarts) == (None, "h100-1", 2)
    assert (running.name, running.comment) == (squeue.job_name("mine", "evaluate-h100-abc", 0), "/runs/mine")
    broken = jobs["13"]
    assert (broken.state, broken.reason) == (SlurmState.OUT_OF_MEMORY, "OutOfMemory")
    assert (broken.name, broken.comment) == (squeue.job_name("mine", "merge-cpu-def", 1), "/runs/a|b")
    assert (jobs["12_3"].reason, jobs["12_3"].node) == ("JobArrayTaskLimit", None)


FOREIGN = """\
CLUSTER: prometheus
12|3|PENDING|0||Nodes required for job are DOWN|DRAINED|hpcq:mine:a:0|/runs/mine|
17|N/A|RUNNING|0|h100-1|None|my job|a comment
of two lines|
18|N/A|RUNNING|0|h100-1|None|a name
13|N/A|RUNNING|0|n|None|with | separators|(null)|
  12|0|RUNNING|2|h100-1|None|hpcq:mine:a:0|/runs/mine|
slurm_load_jobs error: Socket timed out on send/recv operation
"""


def test_foreign_text_is_skipped() -> None:
    """Observed: a line break in the comment of any job of the user was a traceback in every command."""
    jobs = squeue.parse_queue(FOREIGN, "mine")
    assert {job_id: (job.reason, job.comment) for job_id, job in jobs.items()} == {
        "12_3": ("Nodes required for job are DOWN|DRAINED", "/runs/mine"),
        "12_0": (None, "/runs/mine"),
    }


@pytest.mark.parametrize(
    "slurm_state", ["BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "F", "NF", "OOM", "TO"]
)
def test_all_other_states_are_failures(slurm_state: str) -> None:
    """States of ended jobs other than COMPLETED and CANCELLED are failures, in both forms of squeue."""
    (job,) = squeue.parse_queue(f"1|0|{slurm_state}|0||None|hpcq:mine:a:0||\n", "mine").values()
    assert job.state.unit_state is UnitState.FAILED


@pytest.mark.parametrize(
    ("compact", "unit_state"),
    [("PD", "pending"), ("CF", "pending"), ("R", "running"), ("CG", "running"), ("CD", "done"), ("CA", "cancelled")],
)
def test_compact_states_are_known(compact: str, unit_state: str) -> None:
    """A site's wrapper may print the other form."""
    (job,) = squeue.parse_queue(f"1|0|{compact}|0||None|hpcq:mine:a:0||\n", "mine").values()
    assert job.state.unit_state == unit_state


def test_a_state_of_another_version_is_unknown_and_named_in_the_reason() -> None:
    """Nobody knows whether such a job has a process, so it neither has ended nor is proven to be without one.

    It counts as running. As a failure, which it was before, a live job of a newer Slurm was submitted again.
    """
    (job,) = squeue.parse_queue("1|0|NEW_WORD|0||Why|hpcq:mine:a:0||\n", "mine").values()
    assert (job.state, job.reason) == (SlurmState.UNKNOWN, "NEW_WORD, Why")
    assert (job.state.has_ended, job.state.may_have_process) == (False, True)
    assert job.state.unit_state is UnitState.RUNNING


@pytest.mark.parametrize(
    ("numbers", "text"), [([5], "5"), ([3, 1, 2], "1-3"), ([0, 2, 3, 9], "0,2-3,9"), (range(1000), "0-999")]
)
def test_elements_are_passed_to_scancel_as_ranges(numbers: list[int], text: str) -> None:
    """Thousands of consecutive elements are one short argument."""
    assert squeue._ranges(numbers) == text


def test_a_missing_client_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the client and the local profile."""
    monkeypatch.setenv("PATH", "/missing")
    with pytest.raises(SetupError, match=r"squeue is missing on this machine: .*cluster\.profile=local"):
        squeue.poll("mine")


def test_a_client_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a client ends within the timeout."""
    monkeypatch.setattr(client, "CLIENT_TIMEOUT_S", 0.2)
    with pytest.raises(SetupError, match=r"`sleep` got no response from Slurm within 0\.2 s"):
        client.run_client("sleep", "60")


def test_cancelling_nothing_does_not_call_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without elements no client is called."""
    monkeypatch.setenv("PATH", "/missing")
    squeue.cancel([])
