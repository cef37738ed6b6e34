"""What squeue prints, read; and what is told to scancel."""

from __future__ import annotations

import pytest

from hpcq.core.errors import SetupError
from hpcq.core.work import State
from hpcq.slurm import squeue

LISTING = """\
12|3|PENDING|0||JobArrayTaskLimit|hpcq:mine:evaluate-h100-abc:0|/runs/mine|
12|0|RUNNING|2|h100-1|None|hpcq:mine:evaluate-h100-abc:0|/runs/mine|
13|N/A|OUT_OF_MEMORY|0|h100-2|OutOfMemory|hpcq:mine:merge-cpu-def:1|/runs/a|b|
14|N/A|RUNNING|0|h100-2|None|hpcq:mine-too:merge-cpu-def:0|/runs/mine-too|
15|N/A|RUNNING|0|h100-2|None|somebody's job|(null)|
16|1|COMPLETING|0|h100-2|None|hpcq:mine:judge-h100-abc:0|(null)|
"""


def test_a_listing_becomes_one_state_an_element() -> None:
    """Elements are known by job and index; other runs' and other people's jobs are left out."""
    states = squeue.read_queue(LISTING, "mine")
    assert {element: job.state for element, job in states.items()} == {
        ("12", 3): State.PENDING,
        ("12", 0): State.RUNNING,
        ("13", 0): State.FAILED,
        ("16", 1): State.RUNNING,
    }


def test_an_element_carries_what_slurm_says_of_it() -> None:
    """Slurm's own word, reason, node, restarts, and the submission are kept; what Slurm leaves open is None."""
    states = squeue.read_queue(LISTING, "mine")
    running = states["12", 0]
    assert (running.reason, running.node, running.restarts) == (None, "h100-1", 2)
    assert (running.array, running.part, running.folder) == ("evaluate-h100-abc", 0, "/runs/mine")
    broken = states["13", 0]
    assert (broken.slurm_state, broken.reason, broken.part) == ("OUT_OF_MEMORY", "OutOfMemory", 1)
    assert broken.folder == "/runs/a|b"
    assert (states["12", 3].reason, states["12", 3].node) == ("JobArrayTaskLimit", None)


@pytest.mark.parametrize(
    "word", ["BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "NEW_WORD"]
)
def test_every_other_word_is_a_failure(word: str) -> None:
    """A state in which nothing runs or waits any more, and nothing was done, is a failure; so is an unknown one."""
    (job,) = squeue.read_queue(f"1|0|{word}|0||None|hpcq:mine:a:0||\n", "mine").values()
    assert job.state is State.FAILED


@pytest.mark.parametrize(
    ("numbers", "text"), [([5], "5"), ([3, 1, 2], "1-3"), ([0, 2, 3, 9], "0,2-3,9"), (range(1000), "0-999")]
)
def test_elements_are_told_to_scancel_as_ranges(numbers: list[int], text: str) -> None:
    """Thousands of neighbouring elements are one short argument."""
    assert squeue._ranges(numbers) == text


def test_no_slurm_is_one_sentence_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no squeue the sentence says so and names the local profile."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupError, match=r"There is no squeue on this machine: .*cluster\.profile=local"):
        squeue.poll("mine")


def test_a_client_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of a client ends within its timeout."""
    monkeypatch.setattr(squeue, "CLIENT_TIMEOUT_S", 0.2)
    with pytest.raises(SetupError, match=r"did not answer `sleep` within 0\.2 s"):
        squeue.call("sleep", "60")


def test_nothing_to_cancel_calls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling no elements needs no Slurm."""
    monkeypatch.setenv("PATH", "/nowhere")
    squeue.cancel([])
