"""Attempts on disk: what others put there, or a full disk cut, is passed over and never numbered twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, attempts_of, new_attempt, next_number, read_attempts


def record_of(attempt: int, unit: str = "merge.rehearsal") -> AttemptRecord:
    """An attempt that has begun."""
    return AttemptRecord(unit=unit, attempt=attempt, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00Z")


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """A folder with two attempts of one unit."""
    for number in (1, 2):
        Attempt(tmp_path, record_of(number))
    return tmp_path


def numbers(folder: Path) -> list[int]:
    """Of the attempts that can be read."""
    return [record.attempt for record in read_attempts(folder).get("merge.rehearsal", [])]


def test_attempts_come_in_the_order_of_their_numbers(attempts: Path) -> None:
    """The tenth comes after the second, and the next is the eleventh."""
    Attempt(attempts, record_of(10))
    assert (numbers(attempts), next_number(attempts, "merge.rehearsal")) == ([1, 2, 10], 11)


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    """The first attempt of a run is number 1."""
    assert (read_attempts(tmp_path / "none"), next_number(tmp_path / "none", "merge.rehearsal")) == ({}, 1)


@pytest.mark.parametrize("content", [b"", b'{"unit": "merge.rehear', b"[]", b"null", b'{"unit": 1}', b"\xff\xfe\x00"])
def test_an_attempt_that_cannot_be_read_is_passed_over_and_its_number_is_taken(attempts: Path, content: bytes) -> None:
    """Those that can be read are; the next attempt does not overwrite the damaged one."""
    (attempts / "merge.rehearsal.3.json").write_bytes(content)
    assert (numbers(attempts), next_number(attempts, "merge.rehearsal")) == ([1, 2], 4)


@pytest.mark.parametrize("name", ["merge.rehearsal.copy.json", "merge.rehearsal.copy.7.json", "copy.json", ".json"])
def test_a_copy_under_another_name_is_no_attempt(attempts: Path, name: str) -> None:
    """It counts neither as an attempt of the unit that it was nor for its numbers."""
    (attempts / name).write_bytes((attempts / "merge.rehearsal.2.json").read_bytes())
    assert (numbers(attempts), next_number(attempts, "merge.rehearsal")) == ([1, 2], 3)


def test_units_whose_names_begin_alike_are_told_apart(attempts: Path) -> None:
    """'merge.rehearsal' and 'merge.rehearsal.2' each have numbers of their own."""
    Attempt(attempts, record_of(5, unit="merge.rehearsal.2"))
    assert (next_number(attempts, "merge.rehearsal"), next_number(attempts, "merge.rehearsal.2")) == (3, 6)
    assert set(read_attempts(attempts)) == {"merge.rehearsal", "merge.rehearsal.2"}


def test_fields_of_a_later_version_are_ignored(attempts: Path) -> None:
    """A record with a field that this version does not know is read."""
    path = attempts / "merge.rehearsal.2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "good"}))
    assert numbers(attempts) == [1, 2]


BEGINNER = """
import sys
from pathlib import Path
from hpcq.core.attempts import AttemptRecord, new_attempt
record = AttemptRecord(unit="one", attempt=0, job_id=sys.argv[2], node="n", pid=1, start="s")
for _ in range(20):
    new_attempt(Path(sys.argv[1]), record)
"""


def test_no_two_processes_take_the_same_number(tmp_path: Path) -> None:
    """Six that begin attempts of one unit at once have a record each for every one of them."""
    command = [sys.executable, "-c", BEGINNER, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(6)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 6
    records = attempts_of(tmp_path, "one")
    assert [record.attempt for record in records] == list(range(1, 121))
    assert Counter(record.job_id for record in records) == {str(number): 20 for number in range(6)}
    assert len(list(tmp_path.iterdir())) == 120


def test_a_number_whose_claimant_died_stays_unused(tmp_path: Path) -> None:
    """The next attempt takes the one after it."""
    (tmp_path / ".merge.rehearsal.1.claim").mkdir()
    assert new_attempt(tmp_path, record_of(0)).record.attempt == 2
