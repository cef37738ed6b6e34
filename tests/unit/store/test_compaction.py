"""A compacted folder has fewer files and the same content, for the index and for results, down to the last byte."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.store import (
    Response,
    SegmentWriter,
    VariantResults,
    compact,
    count_rows,
    load_index,
    merge_report,
    segment_paths,
    write_results,
)
from hpcq.store import unit_folder as unit_folder_module
from hpcq.store.compaction import FAN_OUT
from hpcq.store.unit_folder import may_overlap, parse_name
from tests.unit.store.conftest import PACKED_WINDOWS

ANSWER = Response(-1.0, is_greedy=True)
numbers = st.sampled_from([0.0, -0.0, math.nan, -math.inf, -1.5])
answers = st.one_of(
    st.builds(Response, numbers, st.booleans(), st.none(), st.sampled_from([None, 0, 7]), st.none()),
    st.builds(Response, st.none(), st.none(), st.sampled_from(["", "\0", "é"]), st.none(), st.none()),
    st.builds(Response, numbers, st.none(), st.none(), st.none(), st.sampled_from(PACKED_WINDOWS)),
)
rows = st.tuples(st.integers(0, 6), st.sampled_from(["arc", "gsm8k"]), answers)


def merged(folder: Path, addresses: dict[str, str]) -> bytes:
    """Return the bytes of the results of all segments in the folder."""
    index = load_index([folder], expect=addresses)
    part = VariantResults(variant="v", index=index, scores=[], provenance={})
    report = merge_report([("v", [*index.responses], index)])
    path = folder.parent / "results.h5"
    write_results(path, run="r", provenance={}, variants=[part], merge=report)
    return path.read_bytes()


def write_segments(folder: Path, key: Any, count: int, *, attempt: int = 1) -> None:
    """Commit `count` segments of one row each, by one attempt."""
    writer = SegmentWriter(folder, attempt=attempt, addresses={"arc": "a" * 64}, provenance={"node": "n1"})
    for number in range(count):
        writer.add(key(1000 * attempt + number), ANSWER)
        writer.flush()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    segments=st.lists(st.tuples(st.lists(rows, min_size=1, max_size=5), st.sampled_from([0.0, 0.1])), max_size=40),
    is_complete=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_results_of_a_compacted_folder_are_the_same_bytes(
    segments: list[tuple[list[Any], float]],
    is_complete: bool,  # noqa: FBT001 - drawn value
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
    write: Any,
    key: Any,
    addresses: dict[str, str],
) -> None:
    """With duplicates, conflicts, tolerances, a damaged file, and any part of the folder compacted before the rest."""
    folder, chance = tmp_path_factory.mktemp("run") / "u", random.Random(seed)  # noqa: S311 - no secret
    folder.mkdir()
    for number, (claims, tolerance) in enumerate(segments):
        claimed = [(key(doc_id, task), response) for doc_id, task, response in claims]
        written = write(folder, claimed, attempt=number // 7, varies=tolerance)
        if chance.random() < 0.05:
            written.write_bytes(written.read_bytes()[:-1])
        if chance.random() < 0.1:
            compact(folder, is_complete=chance.random() < 0.5)
    before, counted = merged(folder, addresses), count_rows(folder)
    damaged = len(load_index([folder], expect=addresses).set_aside)

    compact(folder, is_complete=is_complete)

    assert merged(folder, addresses) == before
    assert count_rows(folder) == counted
    assert len(segment_paths(folder)) <= (damaged + 1 if is_complete else damaged + 2 * FAN_OUT)


def test_the_number_of_files_is_bounded(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """180 segments of three attempts by a worker that compacts: never more than 16 files on each of three levels."""
    most = 0
    for attempt in range(1, 4):
        with SegmentWriter(
            tmp_path / "u", attempt=attempt, addresses=addresses, provenance={}, flush_interval_s=0.0
        ) as writer:
            for number in range(60):
                writer.add(key(1000 * attempt + number), ANSWER)
                if number % FAN_OUT == 0:
                    compact(tmp_path / "u")  # the writer's thread does this too, when it gets the processor
                    most = max(most, len(segment_paths(tmp_path / "u")))
    compact(tmp_path / "u")
    files = [parse_name(path.name) for path in segment_paths(tmp_path / "u")]
    assert most <= 3 * FAN_OUT
    assert len(files) < 3 * FAN_OUT
    assert count_rows(tmp_path / "u") == 180
    assert [count_rows(tmp_path / "u", attempt) for attempt in range(1, 4)] == [60, 60, 60]
    compact(tmp_path / "u", is_complete=True)
    assert len(segment_paths(tmp_path / "u")) == 1
    assert [count_rows(tmp_path / "u", attempt) for attempt in range(1, 4)] == [60, 60, 60]


def test_the_thread_of_a_writer_compacts(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """Files of earlier attempts are compacted when the next one starts, without the worker's thread."""
    write_segments(tmp_path / "u", key, 3 * FAN_OUT)
    deadline = time.monotonic() + 60
    with SegmentWriter(tmp_path / "u", attempt=2, addresses=addresses, provenance={}):
        while len(segment_paths(tmp_path / "u")) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert count_rows(tmp_path / "u", 1) == 3 * FAN_OUT


def interrupt_listing(monkeypatch: pytest.MonkeyPatch, folder: Path, seen: Callable[[list[Path]], list[Path]]) -> None:
    """During the next listing of a folder, compact it; `seen` returns what the listing shows."""
    original = segment_paths
    left = [True]

    def listing(listed: Path) -> list[Path]:
        if listed == folder and left.pop() if left else False:
            before = original(folder)
            compact(folder, is_complete=True)
            return seen(before)
        return original(listed)

    monkeypatch.setattr(unit_folder_module, "segment_paths", listing)


@pytest.mark.parametrize("seen", [lambda before: before, lambda _: [], lambda before: before[::2]])
def test_a_reader_during_a_compaction_misses_and_doubles_nothing(
    tmp_path: Path,
    key: Any,
    addresses: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    seen: Callable[[list[Path]], list[Path]],
) -> None:
    """The listing shows files that vanish before they are read, or (readdir(3)) neither those nor the new file."""
    folder = tmp_path / "u"
    write_segments(folder, key, 5)
    interrupt_listing(monkeypatch, folder, seen)
    index = load_index([folder], expect=addresses)
    assert (len(index), index.duplicates, index.set_aside) == (5, 0, ())
    write_segments(folder, key, 5, attempt=2)
    interrupt_listing(monkeypatch, folder, seen)
    assert count_rows(folder) == 10


def test_leftovers_of_a_killed_compaction_are_not_counted_and_are_deleted(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """Killed before all originals were deleted: each response counts once, and the next compaction deletes them."""
    folder, copy = tmp_path / "u", tmp_path / "copy"
    write_segments(folder, key, 5)
    shutil.copytree(folder, copy)
    compact(folder, is_complete=True)
    for path in segment_paths(copy)[1:4]:
        shutil.copy(path, folder)
    assert len(segment_paths(folder)) == 4
    assert may_overlap(filter(None, (parse_name(path.name) for path in segment_paths(folder))))
    index = load_index([folder], expect=addresses)
    assert (len(index), index.duplicates, count_rows(folder), count_rows(folder, 1)) == (5, 0, 5, 5)
    compact(folder)
    assert len(segment_paths(folder)) == 1


def test_a_damaged_compacted_file_is_set_aside(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """It stays where it is, also when the folder is compacted again, and the other responses are complete."""
    folder = tmp_path / "u"
    write_segments(folder, key, 5)
    compact(folder, is_complete=True)
    (damaged,) = segment_paths(folder)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    write_segments(folder, key, 3, attempt=2)
    compact(folder, is_complete=True)
    index = load_index([folder], expect=addresses)
    assert [item.file for item in index.set_aside] == [f"u/{damaged.name}"]
    assert len(index) == 3
    assert len(segment_paths(folder)) == 2


def test_an_intact_file_is_deleted_only_after_its_copy_was_read(
    tmp_path: Path, key: Any, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new file reads back differently, the originals stay."""
    folder = tmp_path / "u"
    write_segments(folder, key, 5)
    monkeypatch.setattr("hpcq.store.segments.Segment.equals", lambda *_: False)
    compact(folder, is_complete=True)
    assert len(segment_paths(folder)) == 6
    assert len(load_index([folder], expect=addresses)) == 5
