"""A segment returns exactly the rows that were written, or an error states why it cannot be trusted."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.core.errors import SegmentCorruptError, StorageError
from hpcq.store import (
    RequestKey,
    Response,
    SegmentName,
    SegmentWriter,
    count_rows,
    digest_of_arguments,
    load_index,
    read_segment,
)
from hpcq.store.checksummed import checksummed_bytes, stored_digest
from hpcq.store.segments import SEGMENT_FORMAT, SEGMENT_SCHEMA

texts = st.text(st.characters(), max_size=40)
cut = st.one_of(st.none(), st.integers(0, 2**31 - 1))
responses = st.one_of(
    st.builds(Response, st.floats(), st.booleans(), st.none(), cut, st.none()),
    st.builds(Response, st.floats(), st.none(), st.none(), cut, st.none()),
    st.builds(Response, st.none(), st.none(), texts, cut, st.none()),
    st.builds(Response, st.floats(), st.none(), st.none(), cut, st.binary(max_size=40)),
)
keys = st.builds(
    RequestKey,
    task=st.sampled_from(["arc", "a/b", "%2F", "..", "Ω tasks\0"]),
    task_version=st.just("2.0"),
    doc_id=st.integers(0, 2**63 - 1),
    request_index=st.integers(0, 2**31 - 1),
    repeat=st.integers(0, 2**31 - 1),
    digest=st.integers(0, 2**128 - 1).map("{:032x}".format),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.dictionaries(keys, responses, min_size=1, max_size=12))
def test_a_segment_returns_every_row_bit_by_bit(
    rows: dict[RequestKey, Response], tmp_path_factory: pytest.TempPathFactory, write: Any, bits: Any
) -> None:
    """Any Unicode, half a surrogate pair, NUL, empty text, infinities, NaN, -0.0 and the largest numbers are kept."""
    addresses = {key.task: f"address of {key.task}" for key in rows}
    path = write(tmp_path_factory.mktemp("unit"), rows.items(), addresses=addresses)

    segment = read_segment(path)

    assert {key: bits(response) for key, response in segment.rows()} == {key: bits(rows[key]) for key in rows}
    assert {key: response.cut_tokens for key, response in segment.rows()} == {
        key: response.cut_tokens for key, response in rows.items()
    }
    assert [(table.task, table.address) for table in segment.tables] == sorted(addresses.items())
    assert segment.provenance == {"node": "n1"}


def test_a_segment_of_an_earlier_version_is_read(tmp_path: Path, write: Any, key: Any) -> None:
    """Without the column of removed tokens, their number is unknown; it is not zero."""
    path = write(tmp_path, [(key(0, "a"), Response(-1.0, is_greedy=True, cut_tokens=3))], addresses={"a": "x"})
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
        columns = {name: dataset[...] for name, dataset in file["responses"].items() if name != "cut_tokens"}

    def fill(file: h5py.File) -> None:
        file.attrs.update(attributes)
        for name, column in columns.items():
            file.create_dataset(f"responses/{name}", data=column)

    path.write_bytes(checksummed_bytes(fill, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA))

    assert [response for _, response in read_segment(path).rows()] == [Response(-1.0, is_greedy=True, cut_tokens=None)]


def test_one_segment_holds_hundreds_of_tasks(tmp_path: Path, write: Any, key: Any) -> None:
    """The list of tasks may exceed 64 KiB, HDF5's limit for an attribute that is stored in the object header."""
    addresses = {f"task-{number:04d}": f"{number:064d}" for number in range(700)}

    path = write(tmp_path, [(key(1, task), Response(-1.0, is_greedy=True)) for task in addresses], addresses=addresses)

    assert {table.task: table.address for table in read_segment(path).tables} == addresses


def test_a_name_has_attempt_order_and_rows(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """Progress is a directory listing; files that are not committed segments do not count."""
    with SegmentWriter(tmp_path, attempt=3, addresses=addresses, provenance={}, max_rows=2) as writer:
        for doc_id in range(5):
            writer.add(key(doc_id), Response(-1.0, is_greedy=False))
    (tmp_path / "complete.json").write_text("{}")
    (tmp_path / ".0003-000009-0123456789abcdef-9.h5.77.part").write_text("torn")
    (tmp_path / "notes.h5").write_text("foreign")

    names = sorted(filter(None, (SegmentName.parse(path.name) for path in tmp_path.iterdir())), key=str)

    assert [(name.attempt, name.sequence, name.rows) for name in names] == [(3, 0, 2), (3, 1, 2), (3, 2, 1)]
    assert count_rows(tmp_path) == 5
    assert count_rows(tmp_path / "not yet there") == 0


def test_a_segment_is_committed_after_the_flush_interval(
    tmp_path: Path, key: Any, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval starts at the last commit, and a batch is never split."""
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    writer = SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=2.0, max_rows=3)
    now_s += 1.9
    writer.add(key(0), Response(-1.0, is_greedy=False))
    assert count_rows(tmp_path) == 0
    now_s += 0.2
    writer.add(key(1), Response(-1.0, is_greedy=False))
    assert count_rows(tmp_path) == 2
    writer.add_all([(key(doc_id), Response(-1.0, is_greedy=False)) for doc_id in range(2, 9)])
    assert sorted(SegmentName.parse(path.name).rows for path in tmp_path.iterdir()) == [2, 7]  # type: ignore[union-attr]


def test_no_empty_segment_is_written(tmp_path: Path, addresses: dict[str, str]) -> None:
    """A writer without rows creates nothing, not even a folder."""
    with SegmentWriter(tmp_path / "unit", attempt=1, addresses=addresses, provenance={}) as writer:
        assert writer.flush() is None
    assert not (tmp_path / "unit").exists()


def test_rows_added_before_an_exception_are_committed(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """The end of the block commits, also if a backend fails or the job is terminated."""

    def fail() -> None:
        with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}) as writer:
            writer.add(key(0), Response(-1.0, is_greedy=False))
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        fail()
    assert count_rows(tmp_path) == 1


@pytest.mark.parametrize(
    ("change", "response", "sentence"),
    [
        ({"task": "mmlu"}, Response(-1.0, is_greedy=True), "the task 'mmlu' has no address"),
        ({"task_version": "9"}, Response(-1.0, is_greedy=True), "has another task version than earlier rows: '1.0'"),
        ({"doc_id": 2**63}, Response(-1.0, is_greedy=True), "out of range"),
        ({"doc_id": -1}, Response(-1.0, is_greedy=True), "out of range"),
        ({"digest": "short"}, Response(-1.0, is_greedy=True), "the digest is malformed"),
        ({}, Response(-1.0, is_greedy=True, text="text"), "is not a valid response"),
        ({}, Response(is_greedy=True), "is not a valid response"),
        ({}, Response(), "is not a valid response"),
    ],
)
def test_a_row_that_cannot_be_stored_is_rejected_when_added(
    change: dict[str, Any], response: Response, sentence: str, tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """Adding raises, no row of the batch is added, and earlier rows are still committed."""
    with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}) as writer:
        writer.add(key(0), Response(-1.0, is_greedy=True))
        with pytest.raises(ValueError, match=re.escape(sentence)):
            writer.add_all([(key(1), Response(-1.0, is_greedy=True)), (key(2)._replace(**change), response)])
    assert count_rows(tmp_path) == 1


def test_the_digest_of_arguments_depends_on_kind_arguments_and_types() -> None:
    """Equal requests have equal digests in any process; others differ; a tuple counts as a list, as in JSON."""
    digest = digest_of_arguments("generate_until", ["Q", {"until": ["\n"], "temperature": 0.0}])

    assert digest == digest_of_arguments("generate_until", ("Q", {"temperature": 0.0, "until": ("\n",)}))
    assert digest == "4f456f89a8711a68939752b93fedcb35"  # part of the file format: must never change
    others = [("loglikelihood", ["a", "b"]), ("loglikelihood", ["ab", ""]), ("loglikelihood_rolling", ["a", "b"])]
    assert len({digest, *(digest_of_arguments(kind, arguments) for kind, arguments in others)}) == 4
    with pytest.raises(TypeError):
        digest_of_arguments("loglikelihood", [object()])


@pytest.fixture
def segment(tmp_path: Path, write: Any, key: Any) -> Path:
    """Return a small segment with log-likelihoods and texts."""
    scored = [(key(doc_id), Response(-doc_id / 3, doc_id % 2 == 0)) for doc_id in range(40)]
    written = [(key(doc_id, "gsm8k"), Response(text=f"#### {doc_id} " * 8)) for doc_id in range(40)]
    return write(tmp_path / "unit", scored + written)  # type: ignore[no-any-return]


@pytest.mark.parametrize("twentieth", range(20))
def test_a_truncated_segment_is_detected(twentieth: int, segment: Path) -> None:
    """A file that is truncated anywhere, by one byte or more, is never read."""
    content = segment.read_bytes()
    for length in (len(content) * twentieth // 20, len(content) - 1 - twentieth):
        segment.write_bytes(content[:length])
        with pytest.raises(SegmentCorruptError, match=r"not an HDF5 file|truncated"):
            read_segment(segment)


def test_every_flipped_bit_is_detected(segment: Path) -> None:
    """One bit in each of a thousand positions in the file, metadata and padding included."""
    content = segment.read_bytes()
    for at in np.linspace(0, len(content) - 1, 1000, dtype=int).tolist():
        segment.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(SegmentCorruptError):
            read_segment(segment)


def test_appended_bytes_are_detected(segment: Path) -> None:
    """A file with appended bytes is not trusted."""
    segment.write_bytes(segment.read_bytes() + b"\n")
    with pytest.raises(SegmentCorruptError, match="altered"):
        read_segment(segment)


def _hand_made_segment(folder: Path, change: Callable[[h5py.File], None], **kinds: Any) -> Path:
    def fill(file: h5py.File) -> None:
        file.attrs["created"] = "2026-01-01T00:00:00.000+00:00"
        file.attrs["provenance"] = "{}"
        file.attrs["tasks"] = json.dumps([{"task": "arc", "task_version": "1", "address": "a", "rows": 1}])
        group = file.create_group("responses")
        group["doc_id"] = np.zeros(1, "<i8")
        group["request_index"] = group["repeat"] = np.zeros(1, "<i4")
        group["digest"] = np.array([b"0" * 32])
        group["kind"] = np.zeros(1, "u1")
        group["loglikelihood"] = np.zeros(1, "<f8")
        group["is_greedy"] = np.zeros(1, "i1")
        group["text"] = np.zeros(0, "u1")
        group["text_offsets"] = np.zeros(2, "<i8")
        change(file)

    content = checksummed_bytes(fill, **{"form": SEGMENT_FORMAT, "schema": SEGMENT_SCHEMA, **kinds})
    path = folder / f"0001-000000-{stored_digest(content)[:16]}-1.h5"
    path.write_bytes(content)
    return path


def _replace(name: str, column: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["responses"][name]
        file["responses"][name] = column

    return change


def _delete(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _set(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


_TWO_ROWS = json.dumps([{"task": "arc", "task_version": "1", "address": "a", "rows": 2}])


@pytest.mark.parametrize(
    ("change", "kinds", "sentence"),
    [
        (
            _set("note", "later"),
            {"schema": 2},
            "format hpcq-segment, schema 2; this version of hpcq reads hpcq-segment, schema 1",
        ),
        (_set("note", "other"), {"form": "hpcq-results"}, "format hpcq-results, schema 1; this version"),
        (_delete("responses/digest"), {}, "/responses: the column 'digest' (S32) is missing or has another type"),
        (_replace("doc_id", np.zeros(1, "<f8")), {}, "the column 'doc_id' (<i8) is missing or has another type"),
        (_replace("doc_id", np.zeros((1, 1), "<i8")), {}, "the column 'doc_id' (<i8) is missing or has another type"),
        (_replace("repeat", np.zeros(3, "<i4")), {}, "the columns have unequal lengths"),
        (_replace("text_offsets", np.zeros(5, "<i8")), {}, "the columns have unequal lengths"),
        (_replace("text_offsets", np.array([0, 9])), {}, "the offsets of the texts do not match"),
        (_replace("text_offsets", np.zeros(0, "<i8")), {}, "the columns have unequal lengths"),
        (_replace("kind", np.full(1, 7, "u1")), {}, "7 is not a kind of response"),
        (_delete("responses"), {}, "without the layout of hpcq-segment"),
        (_set("tasks", "[]"), {}, "1 rows; its tasks have []"),
        (_set("tasks", _TWO_ROWS), {}, "1 rows; its tasks have [2]"),
        (_set("tasks", "{"), {}, "without the layout of hpcq-segment"),
    ],
)
def test_a_foreign_layout_is_reported(
    change: Callable[[h5py.File], None], kinds: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """A complete file of a later version or another program: the message names the file and the problem."""
    path = _hand_made_segment(tmp_path, change, **kinds)
    with pytest.raises(SegmentCorruptError, match=re.escape(sentence)) as raised:
        read_segment(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_the_unmodified_hand_made_segment_is_valid(tmp_path: Path) -> None:
    """The segment that the previous test modifies is readable without the modification."""
    assert len([*read_segment(_hand_made_segment(tmp_path, lambda _: None)).rows()]) == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("0001-000000-0123456789abcdef-1.h5", b"<html>no such page</html>", "not an HDF5 file (25 bytes)"),
        ("0001-000000-0123456789abcdef-1.h5", b"", "not an HDF5 file (0 bytes)"),
        ("results.h5", b"", "not the name of a segment"),
        ("0001-000000-0123456789abcdef-1.h5", None, "the file no longer exists"),
    ],
)
def test_a_file_that_is_not_a_segment_is_reported(
    name: str, content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    """A file that is not HDF5, does not have the name of a segment, or no longer exists."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SegmentCorruptError, match=re.escape(sentence)):
        read_segment(path)


def _write_until_killed(folder: Path, acknowledged: Any, writer_number: int) -> None:
    addresses = {"arc": "a" * 64}
    with SegmentWriter(folder, attempt=1, addresses=addresses, provenance={}, flush_interval_s=1e9) as writer:
        for doc_id in range(10**6):
            key = RequestKey("arc", "1.0", doc_id, 0, writer_number, digest_of_arguments("loglikelihood", [doc_id]))
            writer.add(key, Response(-math.pi * doc_id, is_greedy=True))
            if doc_id % 7 == 6:
                writer.flush()
                os.write(acknowledged, f"{doc_id + 1}\n".encode())


def test_sigkill_loses_no_acknowledged_row(tmp_path: Path, addresses: dict[str, str]) -> None:
    """Two processes run one attempt at once and are killed repeatedly: rows whose flush had returned are stored."""
    fork = multiprocessing.get_context("fork")
    safe: dict[int, int] = {}
    for start in range(0, 16, 2):
        pipes = {number: os.pipe() for number in (start, start + 1)}
        writers = [
            fork.Process(target=_write_until_killed, args=(tmp_path, end, number)) for number, (_, end) in pipes.items()
        ]
        for writer in writers:
            writer.start()
        acknowledged = {number: os.read(begin, 1) for number, (begin, _) in pipes.items()}
        time.sleep(start * 0.005)
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.join()
            writer.close()
        for number, (begin, end) in pipes.items():
            os.close(end)
            with open(begin, "rb") as lines:  # noqa: PTH123 - a pipe has no path
                *_, last = (acknowledged[number] + lines.read()).split()
                safe[number] = int(last)

    index = load_index([tmp_path], expect=addresses)

    assert min(safe.values()) > 0
    assert index.set_aside == ()
    stored = {(key.repeat, key.doc_id) for key in index.responses}
    assert {(number, doc_id) for number, rows in safe.items() for doc_id in range(rows)} <= stored


@contextlib.contextmanager
def _limited_file_size() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[tuple[Path, contextlib.AbstractContextManager[None]]]:
    """Yield a file system of 64 KiB; without permission to mount one, a context with a limit of 24 KiB per file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        yield disk, contextlib.nullcontext()
        subprocess.run(["umount", str(disk)], check=True)
    else:
        yield disk, _limited_file_size()


def test_a_full_disk_is_reported_and_leaves_no_partial_file(
    tiny_disk: tuple[Path, contextlib.AbstractContextManager[None]], key: Any, addresses: dict[str, str]
) -> None:
    """Rows that could not be written are kept and committed once there is space; committed rows stay intact."""
    disk, full_disk = tiny_disk
    writer = SegmentWriter(disk / "unit", attempt=1, addresses=addresses, provenance={}, flush_interval_s=1e9)
    writer.add(key(0), Response(-1.0, is_greedy=True))
    writer.flush()
    writer.add_all([(key(doc_id), Response(-1.0, is_greedy=True)) for doc_id in range(1, 1500)])

    with full_disk, pytest.raises(StorageError, match=r"the disk is full|is larger than") as raised:
        writer.flush()

    assert "\n" not in str(raised.value)
    assert ".part" not in str(raised.value)
    assert [path.name[:12] for path in (disk / "unit").iterdir()] == ["0001-000000-"]
    writer._folder = disk.parent / "elsewhere"  # simulates space that was freed
    writer.flush()
    index = load_index([disk / "unit", disk.parent / "elsewhere"], expect=addresses)
    assert (len(index), index.duplicates, index.set_aside) == (1500, 0, ())
