"""What is added is committed soon, whatever the worker is doing, by whichever thread, and no failure is kept quiet."""

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
from hpcq.core.files import temporary_beside
from hpcq.store import Response, SegmentWriter, count_rows, load

ANSWER = Response(-1.0, is_greedy=True)
DEADLINE_S = 30.0
NEVER_S = 1e9


def wait_for(folder: Path, rows: int) -> bool:
    """Wait until so many rows are committed."""
    deadline_s = time.monotonic() + DEADLINE_S
    while count_rows(folder) < rows and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return count_rows(folder) >= rows


def test_rows_are_committed_while_the_worker_is_inside_a_call_of_c(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """The main thread runs no line of Python until the segment is there: a batch may take minutes in a library."""
    seen, release = os.pipe()

    def release_the_worker() -> None:
        os.write(release, b"1" if wait_for(tmp_path, 1) else b"0")

    with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.05) as writer:
        writer.add(key(0), ANSWER)
        watcher = threading.Thread(target=release_the_worker)
        watcher.start()
        word = ctypes.create_string_buffer(1)
        ctypes.CDLL(None).read(seen, word, 1)
        assert word.raw == b"1"
        watcher.join()
    os.close(seen)
    os.close(release)


def test_no_more_than_max_rows_wait(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """However far away the interval's end is."""
    with SegmentWriter(
        tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=NEVER_S, max_rows=10
    ) as writer:
        for doc_id in range(35):
            writer.add(key(doc_id), ANSWER)
            assert doc_id + 1 - count_rows(tmp_path) < 10


def test_each_segment_tells_the_counts_of_its_moment(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """What is counted is asked for at each commit and stands beside what never changes; without counts nothing does."""
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
    told = [dict(segment.provenance) for segment in load([tmp_path], expect=addresses).segments]
    assert told == [{**provenance, "asked_tokens": 10}, {**provenance, "asked_tokens": 15}, provenance]


def test_threads_that_flush_at_any_time_lose_and_repeat_nothing(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """Three threads flush without pause, as a notice of preemption may, beside the timekeeper and whoever adds."""
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
    index = load([tmp_path], expect=addresses)
    assert (len(index), index.duplicates, index.conflicts, index.set_aside) == (600, 0, (), ())


def test_whatever_ends_the_timekeeper_reaches_who_adds_next(
    tmp_path: Path, key: Any, addresses: dict[str, str]
) -> None:
    """A defect, which a thread of its own would take with it, is raised where somebody hears it; the rows are kept."""
    with SegmentWriter(tmp_path, attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.02) as writer:
        writer._provenance, provenance = object(), writer._provenance  # type: ignore[assignment]
        writer._waiting.append((key(0), ANSWER))
        assert writer._timekeeper is not None
        assert writer._timekeeper.exception(timeout=DEADLINE_S) is not None
        writer._provenance = provenance
        with pytest.raises(TypeError):
            writer.add(key(1), ANSWER)
    assert len(load([tmp_path], expect=addresses)) == 2


def test_a_refusal_that_cannot_pass_reaches_who_adds_next(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """A file stands where the folder should be: met by the timekeeper, told to the worker, not waited for."""
    (tmp_path / "file").write_text("in the way")
    writer = SegmentWriter(
        tmp_path / "file" / "u", attempt=1, addresses=addresses, provenance={}, flush_interval_s=0.02
    )

    def work() -> None:
        with writer:
            for doc_id in itertools.count():
                writer.add(key(doc_id), ANSWER)

    with pytest.raises(StorageError, match="a file stands where a folder should be"):
        work()
    (tmp_path / "file").unlink()
    writer.flush()
    assert count_rows(tmp_path / "file" / "u") > 0


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, key: Any, addresses: dict[str, str]) -> None:
    """Temporary files of processes that are gone; those of live ones, of other hosts and of strangers stay."""
    pid = os.fork()
    if pid == 0:
        temporary_beside(tmp_path / "0001-000000-0123456789abcdef-1.h5").write_bytes(b"half")
        os._exit(0)
    os.waitpid(pid, 0)
    [orphan] = tmp_path.iterdir()
    mine = temporary_beside(tmp_path / "0001-000001-0123456789abcdef-1.h5")
    here = orphan.name.split(".")[-2].split("-")[0]
    elsewhere = orphan.with_name(orphan.name.replace(here, "deadbeef"))
    strange = tmp_path / ".0003-000000-0123456789abcdef-1.h5.77.part"
    for path in (mine, elsewhere, strange):
        path.write_bytes(b"half")

    with SegmentWriter(tmp_path, attempt=2, addresses=addresses, provenance={}) as writer:
        writer.add(key(0), ANSWER)

    assert {path.name for path in tmp_path.glob(".*")} == {mine.name, elsewhere.name, strange.name}
    assert count_rows(tmp_path) == 1
