"""The index has every response once, for any order of files, and never chooses between different responses."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.core.errors import StorageError, WorkerError
from hpcq.store import Claim, Response, load_index
from hpcq.store.checksummed import checksummed_bytes
from hpcq.store.segments import SEGMENT_FORMAT, SEGMENT_SCHEMA
from tests.unit.store.conftest import PACKED_WINDOWS

numbers = st.sampled_from([0.0, -0.0, math.nan, -math.inf, -1.5])
cut = st.sampled_from([None, 0, 7])
answers = st.one_of(
    st.builds(Response, numbers, st.booleans(), st.none(), cut, st.none()),
    st.builds(Response, st.none(), st.none(), st.sampled_from(["", "\0", "é"]), cut, st.none()),
    st.builds(Response, numbers, st.none(), st.none(), st.none(), st.sampled_from(PACKED_WINDOWS)),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    claims=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["arc", "gsm8k"]), answers), max_size=24),
    cuts=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_index_equals_a_dictionary_of_sets(  # noqa: PLR0913, PLR0917 - drawn values and fixtures
    claims: list[Any],
    cuts: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
    write: Any,
    key: Any,
    bits: Any,
    addresses: dict[str, str],
) -> None:
    """For any distribution of rows: keys with one response are indexed, others are conflicts, the rest duplicates."""
    rows = [(key(doc_id, task), response) for doc_id, task, response in claims]
    claimed: dict[Any, set[Any]] = {}
    for name, response in rows:
        claimed.setdefault(name, set()).add(bits(response))
    folder = tmp_path_factory.mktemp("unit")
    random.Random(seed).shuffle(rows)  # noqa: S311 - no secret
    for number in range(cuts):
        if rows[number::cuts]:
            write(folder, rows[number::cuts], attempt=number)

    index = load_index([folder], expect=addresses)

    agreed = {name: claim for name, claim in claimed.items() if len(claim) == 1}
    assert {name: {bits(response)} for name, response in index.responses.items()} == agreed
    assert list(index.responses) == sorted(agreed)
    disputed = {conflict.key: {bits(claim.response) for claim in conflict.claims} for conflict in index.conflicts}
    assert disputed == {name: claim for name, claim in claimed.items() if len(claim) > 1}
    assert index.duplicates == len(rows) - sum(map(len, claimed.values()))


def test_a_conflict_has_both_responses_and_both_files(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """One different bit of a float is a conflict, and the key has no response."""
    nearly = math.nextafter(-1.0, 0)
    first = write(
        tmp_path / "u.0of2", [(key(0), Response(-1.0, is_greedy=True)), (key(1), Response(-2.0, is_greedy=True))]
    )
    second = write(
        tmp_path / "u.1of2", [(key(0), Response(nearly, is_greedy=True)), (key(1), Response(-2.0, is_greedy=True))]
    )
    write(tmp_path / "u.1of2", [(key(0), Response(nearly, is_greedy=True))], attempt=2)

    index = load_index([tmp_path / "u.0of2", tmp_path / "u.1of2"], expect=addresses)

    [conflict] = index.conflicts
    assert conflict.key == key(0)
    assert conflict.claims == (
        Claim(file=f"u.0of2/{first.name}", response=Response(-1.0, is_greedy=True)),
        Claim(file=f"u.1of2/{second.name}", response=Response(nearly, is_greedy=True)),
    )
    assert list(index.responses) == [key(1)]
    assert index.duplicates == 2


@pytest.mark.parametrize(
    ("answers", "varies", "varied"),
    [
        ([Response(-1.0, is_greedy=True), Response(-1.05, is_greedy=False)], (0.1, 0.1), 1),
        ([Response(-1.0, is_greedy=True), Response(-1.05, is_greedy=True)], (0.1, 0.0), None),
        ([Response(-1.0, is_greedy=True), Response(-1.15, is_greedy=True)], (0.1, 0.1), None),
        ([Response(-1.0, is_greedy=True), Response(math.nan, is_greedy=True)], (0.1, 0.1), None),
        ([Response(-math.inf, is_greedy=True), Response(-1.0, is_greedy=True)], (0.1, 0.1), None),
        ([Response(text="Paris"), Response(text="Rome")], (0.1, 0.1), 1),
        ([Response(text="Paris"), Response(text="Rome")], (0.0, 0.0), None),
        ([Response(text="Paris"), Response(-1.0, is_greedy=True)], (0.1, 0.1), None),
    ],
)
def test_responses_within_the_tolerance_of_their_back_end_are_not_in_conflict(
    tmp_path: Path,
    write: Any,
    key: Any,
    addresses: dict[str, str],
    answers: list[Response],
    varies: tuple[float, float],
    varied: int | None,
) -> None:
    """Two that differ within both segments' tolerance: the first file's is used. Otherwise they are in conflict."""
    for number, (answer, tolerance) in enumerate(zip(answers, varies, strict=True)):
        write(tmp_path / f"u.{number}of2", [(key(0), answer)], varies=tolerance)

    index = load_index([tmp_path / "u.0of2", tmp_path / "u.1of2"], expect=addresses)

    assert (len(index.conflicts), index.varied) == ((1, 0) if varied is None else (0, varied))
    assert index.responses == ({} if varied is None else {key(0): answers[0]})


def test_a_damaged_segment_is_set_aside_with_its_reason(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """The rows of intact segments are complete; files that are being written are not read."""
    write(tmp_path / "u", [(key(0), Response(-1.0, is_greedy=True))])
    torn = write(tmp_path / "u", [(key(1), Response(-1.0, is_greedy=True))], attempt=2)
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "u" / ".0003-000000-0123456789abcdef-1.h5.1.part").write_bytes(b"half")

    index = load_index([tmp_path / "u"], expect=addresses)

    assert list(index.responses) == [key(0)]
    [damaged] = index.set_aside
    assert damaged.file == f"u/{torn.name}"
    assert "truncated" in damaged.reason


def _flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def _foreign(_: bytes) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["data"] = [1, 2, 3]
    return image.getvalue()


def _later(_: bytes) -> bytes:
    return checksummed_bytes(
        lambda file: file.create_group("responses"), form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA + 1
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "truncated"),
        (lambda _: b"", "not an HDF5 file"),
        (_flipped, "altered"),
        (_foreign, "not written by hpcq"),
        (_later, "schema 2; this version of hpcq reads hpcq-segment, schema 1"),
    ],
    ids=["torn", "empty", "bit-flipped", "foreign", "later version"],
)
def test_the_requests_of_a_segment_that_is_set_aside_are_answered_again(
    damage: Callable[[bytes], bytes], reason: str, tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """Any damage is reported with its reason, the keys have no response, and a new response is not in conflict."""
    write(tmp_path / "u", [(key(0), Response(-1.0, is_greedy=True))])
    damaged = write(tmp_path / "u", [(key(1), Response(-1.0, is_greedy=True))])
    damaged.write_bytes(damage(damaged.read_bytes()))

    before = load_index([tmp_path / "u"], expect=addresses)
    write(tmp_path / "u", [(key(1), Response(-1.0, is_greedy=True))], attempt=2)
    after = load_index([tmp_path / "u"], expect=addresses)

    assert (list(before.responses), list(after.responses)) == ([key(0)], [key(0), key(1)])
    assert [item.file for item in before.set_aside] == [f"u/{damaged.name}"]
    assert reason in before.set_aside[0].reason
    assert (after.set_aside, after.conflicts, after.duplicates) == (before.set_aside, (), 0)


def test_rows_of_another_evaluation_are_counted_and_ignored(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """Rows with another address, or of a task that is not expected, are neither responses nor conflicts."""
    write(tmp_path, [(key(0), Response(-1.0, is_greedy=True)), (key(0, "gsm8k"), Response(text="4"))])
    write(tmp_path, [(key(0), Response(-9.0, is_greedy=True))], addresses={"arc": "c" * 64})

    index = load_index([tmp_path], expect={"arc": addresses["arc"]})

    assert index.responses == {key(0): Response(-1.0, is_greedy=True)}
    assert (index.ignored, index.conflicts) == (2, ())
    assert [(fact.rows, fact.provenance) for fact in index.segments] == [(1, {"node": "n1"})]


def test_the_order_and_repetition_of_folders_do_not_matter(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """Every order of three folders, and a repeated folder, give the same index with the same digest of inputs."""
    folders = [tmp_path / f"u.{number}of3" for number in range(3)]
    for number, folder in enumerate(folders):
        write(
            folder,
            [(key(doc_id), Response(-float(doc_id * number), is_greedy=True)) for doc_id in (0, number, number + 1)],
        )

    contents = {
        repr((index.responses, index.conflicts, index.duplicates, index.inputs))
        for order in [*itertools.permutations(folders), [*folders, folders[0]]]
        for index in [load_index(order, expect=addresses)]
    }

    assert len(contents) == 1


def test_new_rows_and_new_expectations_change_the_inputs(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """A merge with new rows or new expectations has another digest of inputs; foreign rows do not change it."""
    write(tmp_path, [(key(0), Response(-1.0, is_greedy=True))])
    before = load_index([tmp_path], expect=addresses).inputs
    write(tmp_path, [(key(9), Response(-1.0, is_greedy=True))], addresses={"arc": "c" * 64})
    assert load_index([tmp_path], expect=addresses).inputs == before
    assert load_index([tmp_path], expect={"arc": addresses["arc"]}).inputs != before
    write(tmp_path, [(key(1), Response(-1.0, is_greedy=True))])
    assert load_index([tmp_path], expect=addresses).inputs != before


def test_an_index_without_segments_is_empty(tmp_path: Path, addresses: dict[str, str]) -> None:
    """There is an index before the first segment, and before its folder exists."""
    index = load_index([tmp_path, tmp_path / "not yet there"], expect=addresses)
    assert (len(index), index.responses, index.duplicates, index.ignored) == (0, {}, 0, 0)


def test_two_task_versions_under_one_address_are_rejected(
    tmp_path: Path, write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """Responses to two versions of a task must not be scored together."""
    write(tmp_path, [(key(0), Response(-1.0, is_greedy=True))])
    write(tmp_path, [(key(1)._replace(task_version="2.0"), Response(-1.0, is_greedy=True))])
    with pytest.raises(WorkerError, match=r"the task 'arc' has responses of the versions"):
        load_index([tmp_path], expect=addresses)


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, addresses: dict[str, str]) -> None:
    """A file in place of the unit's folder is an error; the folder does not count as empty."""
    (tmp_path / "u").write_text("")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        load_index([tmp_path / "u"], expect=addresses)
