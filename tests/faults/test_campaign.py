"""A short campaign, and what its judges see."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.judging import COMMIT_S, repeats_in, too_much_lost
from tests.faults.kinds import KINDS

FAULTS = 14


@pytest.mark.slurm
@pytest.mark.timeout(420)
def test_a_run_that_is_killed_signalled_and_damaged_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    """After faults of many kinds nothing is lost, disputed, hung, shown with a traceback, or done twice too often."""
    cheap = [kind.name for kind in KINDS.values() if kind.is_cheap]
    tally = Campaign(seed=7, folder=tmp_path, seconds=60.0, faults=FAULTS, kinds=cheap).run()
    assert tally.violations == []
    assert tally.faults.total() >= 10
    assert len(tally.faults) >= 8
    assert tally.distinct == 1500 * tally.rounds


def test_an_answer_lost_with_a_process_is_told_from_one_given_twice_at_once() -> None:
    """Who began after the other was over has lost nothing of his own; who began before could not know."""
    journal = {
        "first": [(1.0, "a"), (2.0, "b"), (3.0, "c")],
        "after": [(9.0, "c"), (9.5, "b"), (10.0, "d")],
        "beside": [(2.5, "a"), (9.5, "e")],
    }
    repeats = repeats_in(journal, forgiven={"b"})
    assert (repeats.answered, repeats.distinct, repeats.concurrent, repeats.forgiven) == (8, 5, 1, 1)
    assert [(lost.process, lost.requests) for lost in repeats.lost] == [("first", 1)]


def test_more_lost_than_a_flush_interval_is_a_violation_unless_the_disk_was_full() -> None:
    """The bound is in requests of a known pace; while the disk was full nothing could be committed."""
    lines = [(float(second), str(second)) for second in range(10)]
    journal = {"first": lines, "second": [(100.0 + second, name) for second, name in lines]}
    repeats, most_s = repeats_in(journal, forgiven=()), 10.0 - COMMIT_S
    assert too_much_lost(repeats, request_s=1.0, flush_interval_s=most_s) == []
    (said,) = too_much_lost(repeats, request_s=1.0, flush_interval_s=most_s - 0.5)
    assert "lost 10 answers" in said
    excused = repeats_in(journal, forgiven=(), full=[(5.0, 6.0)])
    assert too_much_lost(excused, request_s=1.0, flush_interval_s=0.0) == []
