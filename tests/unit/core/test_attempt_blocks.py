"""Units with hundreds of attempts have few files, and all attempts are read, whenever that happens."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempt_blocks import BLOCK, write_blocks
from hpcq.core.attempts import (
    Attempt,
    AttemptRecord,
    new_attempt,
    next_attempt_number,
    read_attempts,
    read_unit_attempts,
)
from hpcq.core.outcomes import Outcome

COUNT = 3 * BLOCK + 5


def record_of(attempt: int) -> AttemptRecord:
    """Return a record of an attempt that has started."""
    return AttemptRecord(
        unit="one", attempt=attempt, job_id=str(attempt), node="n", pid=1, start="2026-01-01T00:00:00Z"
    )


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """A folder with as many attempts as make two blocks; none is written yet."""
    for number in range(1, COUNT + 1):
        Attempt(tmp_path, record_of(number), is_durable=False)
    return tmp_path


def test_old_attempts_are_in_blocks(tmp_path: Path) -> None:
    """One file per block, and one for each of the latest attempts; all are read, in order, by both functions."""
    for number in range(1, 2 * BLOCK):
        Attempt(tmp_path, record_of(number), is_durable=False)
    for number in range(2 * BLOCK, COUNT + 1):
        assert new_attempt(tmp_path, record_of(0)).record.attempt == number
        assert len([*tmp_path.iterdir()]) < 2 * BLOCK + number // BLOCK
    assert len([*tmp_path.glob("*.attempts")]) == 2
    assert [one.attempt for one in read_unit_attempts(tmp_path, "one")] == [*range(1, COUNT + 1)]
    assert [one.attempt for one in read_attempts(tmp_path)["one"]] == [*range(1, COUNT + 1)]
    assert next_attempt_number(tmp_path, "one") == COUNT + 1
    assert read_unit_attempts(tmp_path, "two") == []


def test_a_record_that_changes_later_replaces_the_one_in_its_block(attempts: Path) -> None:
    """It has a file again, which counts, until it is moved to the block."""
    write_blocks(attempts, "one", range(1, COUNT + 1), COUNT)
    Attempt(attempts, replace(record_of(7), outcome=Outcome.FAILED))
    assert read_unit_attempts(attempts, "one")[6].outcome is Outcome.FAILED
    write_blocks(attempts, "one", range(1, COUNT + 1), COUNT)
    assert not (attempts / "one.7.json").exists()
    assert read_attempts(attempts)["one"][6].outcome is Outcome.FAILED
    assert len(read_attempts(attempts)["one"]) == COUNT


def test_a_damaged_record_stays_and_a_damaged_block_hides_only_its_own(attempts: Path) -> None:
    """Their numbers stay in use."""
    (attempts / "one.7.json").write_text("{")
    write_blocks(attempts, "one", range(1, COUNT + 1), COUNT)
    assert (attempts / "one.7.json").exists()
    assert len(read_unit_attempts(attempts, "one")) == COUNT - 1
    next(attempts.glob("one.1-*.attempts")).write_text("[")
    assert [one.attempt for one in read_unit_attempts(attempts, "one")] == [*range(BLOCK + 1, COUNT + 1)]
    assert next_attempt_number(attempts, "one") == COUNT + 1


def test_readers_miss_nothing_while_blocks_are_written(attempts: Path) -> None:
    """Two threads write the same blocks, and two read, by both functions."""
    is_over = threading.Event()
    counts: set[int] = set()

    def read() -> None:
        while not is_over.is_set():
            counts.add(len(read_attempts(attempts)["one"]))
            counts.add(len(read_unit_attempts(attempts, "one")))

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [
        threading.Thread(target=write_blocks, args=(attempts, "one", range(1, COUNT + 1), COUNT)) for _ in range(2)
    ]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    is_over.set()
    for thread in readers:
        thread.join()
    assert counts == {COUNT}
    assert len([*attempts.iterdir()]) == COUNT - 2 * BLOCK + 2
