"""A short fault campaign, and the functions that count repeated answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.fault_kinds.table import FAULT_KINDS
from tests.faults.invariants import COMMIT_S, count_repeated_answers, excessive_losses

FAULTS = 14


@pytest.mark.slurm
def test_a_short_campaign_has_no_violations(tmp_path: Path) -> None:
    """After many kinds of faults no response is lost or differs, no run hangs, and little work is repeated."""
    fast = [kind.name for kind in FAULT_KINDS.values() if kind.is_fast]
    summary = Campaign(seed=7, folder=tmp_path, seconds=1200.0, faults=FAULTS, kinds=fast).run()
    assert summary.violations == []
    assert summary.faults.total() >= 10
    assert len(summary.faults) >= 8
    assert summary.distinct == 1500 * summary.trials


def test_lost_answers_are_distinguished_from_concurrent_ones() -> None:
    """An answer repeated after its process had ended was lost; one repeated before that is concurrent."""
    journals = {
        "first": [(1.0, "a"), (2.0, "b"), (3.0, "c")],
        "after": [(9.0, "c"), (9.5, "b"), (10.0, "d")],
        "concurrent": [(2.5, "a"), (9.5, "e")],
    }
    repeats = count_repeated_answers(journals, damaged_requests={"b"})
    assert (repeats.answered, repeats.distinct, repeats.concurrent, repeats.after_damage) == (8, 5, 1, 1)
    assert [(lost.process, lost.requests) for lost in repeats.lost] == [("first", 1)]


def test_losing_more_than_a_flush_interval_is_a_violation_unless_the_disk_was_full() -> None:
    """The limit is counted in requests of known duration. While the disk is full nothing can be committed."""
    lines = [(float(second), str(second)) for second in range(10)]
    journals = {"first": lines, "second": [(100.0 + second, name) for second, name in lines]}
    repeats, flush_interval_s = count_repeated_answers(journals, damaged_requests=()), 10.0 - COMMIT_S
    assert excessive_losses(repeats, request_s=1.0, flush_interval_s=flush_interval_s) == []
    (violation,) = excessive_losses(repeats, request_s=1.0, flush_interval_s=flush_interval_s - 0.5)
    assert "lost 10 answers" in violation
    slow = {name: [(3 * second, request) for second, request in lines] for name, lines in journals.items()}
    late = count_repeated_answers(slow, damaged_requests=())
    assert excessive_losses(late, request_s=1.0, flush_interval_s=0.0) == []
    excused = count_repeated_answers(journals, damaged_requests=(), disk_full_periods_s=[(5.0, 6.0)])
    assert excessive_losses(excused, request_s=1.0, flush_interval_s=0.0) == []
