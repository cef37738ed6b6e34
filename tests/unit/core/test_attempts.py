"""Attempt records on disk: foreign and truncated files are skipped, and no number is used twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import pytest

from hpcq.core.attempts import (
    Attempt,
    AttemptRecord,
    new_attempt,
    next_attempt_number,
    read_attempts,
    read_unit_attempts,
)
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Action, Launcher, Outcome


def record_of(attempt: int, unit: str = "merge.rehearsal") -> AttemptRecord:
    """Return a record of an attempt that has started."""
    return AttemptRecord(unit=unit, attempt=attempt, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00Z")


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """A folder with two attempts of one unit."""
    for number in (1, 2):
        Attempt(tmp_path, record_of(number))
    return tmp_path


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the attempts that can be read."""
    return [record.attempt for record in read_attempts(folder).get("merge.rehearsal", [])]


def test_attempts_are_ordered_by_number(attempts: Path) -> None:
    """Attempt 10 comes after attempt 2, and the next one is 11."""
    Attempt(attempts, record_of(10))
    assert (numbers(attempts), next_attempt_number(attempts, "merge.rehearsal")) == ([1, 2, 10], 11)


def test_a_missing_folder_has_no_attempts(tmp_path: Path) -> None:
    """The first attempt of a run is number 1."""
    assert (read_attempts(tmp_path / "none"), next_attempt_number(tmp_path / "none", "merge.rehearsal")) == ({}, 1)


@pytest.mark.parametrize("content", [b"", b'{"unit": "merge.rehear', b"[]", b"null", b'{"unit": 1}', b"\xff\xfe\x00"])
def test_an_unreadable_attempt_is_skipped_and_its_number_is_not_reused(attempts: Path, content: bytes) -> None:
    """Readable attempts are read; the next attempt does not overwrite the damaged file."""
    (attempts / "merge.rehearsal.3.json").write_bytes(content)
    assert (numbers(attempts), next_attempt_number(attempts, "merge.rehearsal")) == ([1, 2], 4)


@pytest.mark.parametrize("name", ["merge.rehearsal.copy.json", "merge.rehearsal.copy.7.json", "copy.json", ".json"])
def test_a_copy_with_another_name_is_not_an_attempt(attempts: Path, name: str) -> None:
    """It counts neither as an attempt of its unit nor for the unit's numbers."""
    (attempts / name).write_bytes((attempts / "merge.rehearsal.2.json").read_bytes())
    assert (numbers(attempts), next_attempt_number(attempts, "merge.rehearsal")) == ([1, 2], 3)


def test_units_with_a_common_prefix_are_distinguished(attempts: Path) -> None:
    """'merge.rehearsal' and 'merge.rehearsal.2' have separate numbers."""
    Attempt(attempts, record_of(5, unit="merge.rehearsal.2"))
    assert (next_attempt_number(attempts, "merge.rehearsal"), next_attempt_number(attempts, "merge.rehearsal.2")) == (
        3,
        6,
    )
    assert set(read_attempts(attempts)) == {"merge.rehearsal", "merge.rehearsal.2"}


def test_fields_of_a_later_version_are_ignored(attempts: Path) -> None:
    """A record with a field that this version does not know is read."""
    path = attempts / "merge.rehearsal.2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later_field": "value"}))
    assert numbers(attempts) == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"start": None},
        {"start": "yesterday"},
        {"end": "2026-01-01T00:00:00"},
        {"process": None},
        {"gpus": "8"},
        {"total": [1]},
        {"facts": None},
        {"facts": {"planned": "x"}},
        {"facts": {"asked_tokens": "many"}},
    ],
)
def test_a_record_with_a_field_of_another_type_is_unreadable(attempts: Path, changes: dict[str, object]) -> None:
    """It is skipped like a truncated one, so that no command fails on it; its number stays in use."""
    path = attempts / "merge.rehearsal.2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (attempts / "merge.rehearsal.7.json").mkdir()
    assert numbers(attempts) == [1]
    assert next_attempt_number(attempts, "merge.rehearsal") == 8


NEW_ATTEMPTS = """
import sys
from pathlib import Path
from hpcq.core.attempts import AttemptRecord, new_attempt, utc_now
record = AttemptRecord(unit="one", attempt=0, job_id=sys.argv[2], node="n", pid=1, start=utc_now())
for _ in range(20):
    new_attempt(Path(sys.argv[1]), record)
"""


def test_concurrent_processes_get_different_numbers(tmp_path: Path) -> None:
    """Six processes that create attempts of one unit at the same time get one record per attempt."""
    command = [sys.executable, "-c", NEW_ATTEMPTS, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    records = read_unit_attempts(tmp_path, "one")
    assert [record.attempt for record in records] == list(range(1, 121))
    assert Counter(record.job_id for record in records) == {str(number): 20 for number in range(6)}
    assert len(list(tmp_path.iterdir())) == 120


def test_a_number_claimed_by_a_killed_process_stays_unused(tmp_path: Path) -> None:
    """The next attempt gets the following number."""
    (tmp_path / ".merge.rehearsal.1.claim").mkdir()
    assert new_attempt(tmp_path, record_of(0)).record.attempt == 2


@pytest.mark.parametrize(
    ("field", "kind"), [("outcome", Outcome), ("launcher", Launcher), ("failure", Failure), ("decision", Action)]
)
def test_the_values_of_a_record_are_enums(attempts: Path, field: str, kind: type[StrEnum]) -> None:
    """Each value is written as its text and read as its member."""
    path = attempts / "merge.rehearsal.2.json"
    for value in kind:
        Attempt(attempts, replace(record_of(2), **{field: value}))
        assert json.loads(path.read_text())[field] == value.value
        assert getattr(read_unit_attempts(attempts, "merge.rehearsal")[1], field) is value


@pytest.mark.parametrize(("reason", "expected"), [(None, "{}"), ("no room", "no room ({})")])
def test_a_value_of_another_version_is_unknown_and_the_reason_says_so(
    attempts: Path, reason: str | None, expected: str
) -> None:
    """The record is read, and its reason has the values as they were written."""
    path = attempts / "merge.rehearsal.2.json"
    later = {"outcome": "paused", "failure": 7, "reason": reason}
    path.write_text(json.dumps({**json.loads(path.read_text()), **later}))
    record = read_unit_attempts(attempts, "merge.rehearsal")[1]
    assert (record.outcome, record.failure, record.decision) == (Outcome.UNKNOWN, Failure.UNKNOWN, None)
    message = "written by another version of hpcq: unknown outcome 'paused', failure 7"
    assert record.reason == expected.format(message)
