"""Added rows are committed at every interval, independent of the worker and the thread; every error is raised."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import StorageError
from hpcq.core.files import temporary_path
from hpcq.store import Response, SegmentWriter, count_rows, load_index

ANSWER = Response(-1.0, is_greedy=True)
DEADLINE_S = 280.0
NEVER_S = 1e9


def wait_for(folder: Path, rows: int) -> bool:
    """Return whether `rows` rows are committed before the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while count_rows(folder) < rows and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return count_rows(folder) >= rows


def test_rows_are_committed_while_the_worker_is_inside_a_c_call(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """The main thread runs no Python code until the segment exists: a batch may take minutes inside a library."""
    read_end, write_end = os.pipe()

    def release_the_worker() -> None:
        os.write(write_end, b"1" if wait_for(tmp_path, 1) else b"0")

    with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.05) as writer:
        writer.add(key(0), ANSWER)
        watcher = threading.Thread(target=release_the_worker)
        watcher.start()
        buffer = ctypes.create_string_buffer(1)
        ctypes.CDLL(None).read(read_end, buffer, 1)
        assert buffer.raw == b"1"
        watcher.join()
    os.close(read_end)
    os.close(write_end)


def test_no_more_than_max_rows_are_pending(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """`max_rows` triggers a commit, also with an interval that never ends."""
    with SegmentWriter(
        tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=NEVER_S, max_rows=10
    ) as writer:
        for doc_id in range(35):
            writer.add(key(doc_id), ANSWER)
            assert doc_id + 1 - count_rows(tmp_path) < 10


def test_each_segment_has_the_counts_at_its_commit(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """Counts are read at each commit and added to the constant provenance; without counts, nothing is added."""
    counts = {"asked_tokens": 10}
    provenance = {"node": "n1"}
    writer = SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance=provenance, counts=lambda: counts)
    for doc_id in range(2):
        writer.add(key(doc_id), ANSWER)
        writer.flush()
        counts["asked_tokens"] += 5
    plain = SegmentWriter(tmp_path, attempt=2, addresses=addresses, provenance=provenance)
    plain.add(key(2), ANSWER)
    plain.flush()
    found = [dict(segment.provenance) for segment in load_index([tmp_path], expect=addresses).segments]
    assert found == [{**provenance, "asked_tokens": 10}, {**provenance, "asked_tokens": 15}, provenance]


def test_concurrent_flushes_neither_lose_nor_duplicate_rows(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """Three threads flush continuously, as on a preemption notice, next to the flush thread and the adding thread."""
    is_over = threading.Event()

    def flush(writer: SegmentWriter) -> None:
        while not is_over.is_set():
            writer.flush()

    with SegmentWriter(
        tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.01, max_rows=7
    ) as writer:
        threads = [threading.Thread(target=flush, args=(writer,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for doc_id in range(600):
            writer.add(key(doc_id), ANSWER)
        is_over.set()
        for thread in threads:
            thread.join()
    index = load_index([tmp_path], expect=addresses)
    assert (len(index), index.duplicates, index.conflicts, index.set_aside) == (600, 0, (), ())


def test_an_error_of_the_flush_thread_is_raised_by_the_next_add(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """An unexpected error, which would otherwise be lost with its thread, is raised; the rows are kept."""
    with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.02) as writer:
        writer._provenance, provenance = object(), writer._provenance  # type: ignore[assignment]
        writer._pending.append((key(0), ANSWER))
        assert writer._flush_thread is not None
        assert writer._flush_thread.exception(timeout=DEADLINE_S) is not None
        writer._provenance = provenance
        with pytest.raises(TypeError):
            writer.add(key(1), ANSWER)
    assert len(load_index([tmp_path], expect=addresses)) == 2


def test_a_permanent_storage_error_is_raised_by_the_next_add(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """A file in place of the folder: the flush thread meets it, and the worker gets it without retries."""
    (tmp_path / "file").write_text("in the way")
    writer = SegmentWriter(
        tmp_path / "file" / "u", attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.02
    )

    def work() -> None:
        with writer:
            for doc_id in itertools.count():
                writer.add(key(doc_id), ANSWER)

    with pytest.raises(StorageError, match="a file exists where a folder should be"):
        work()
    (tmp_path / "file").unlink()
    writer.flush()
    assert count_rows(tmp_path / "file" / "u") > 0


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """Temporary files of exited processes; those of running processes, other hosts and other programs stay."""
    pid = os.fork()
    if pid == 0:
        temporary_path(tmp_path / "0001-000000-0123456789abcdef-1.h5").write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    [orphan] = tmp_path.iterdir()
    mine = temporary_path(tmp_path / "0001-000001-0123456789abcdef-1.h5")
    this_host = orphan.name.split(".")[-2].split("-")[0]
    other_host = orphan.with_name(orphan.name.replace(this_host, "deadbeef"))
    foreign = tmp_path / ".0003-000000-0123456789abcdef-1.h5.77.part"
    for path in (mine, other_host, foreign):
        path.write_bytes(b"half")

    with SegmentWriter(tmp_path, attempt=2, addresses=addresses, provenance={}) as writer:
        writer.add(key(0), ANSWER)

    assert {path.name for path in tmp_path.glob(".*")} == {mine.name, other_host.name, foreign.name}
    assert count_rows(tmp_path) == 1
