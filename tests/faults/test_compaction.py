"""Workers and compactions of one folder are killed at random moments while it is read: nothing is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from hpcq.store import (
    RequestKey,
    Response,
    SegmentWriter,
    VariantResults,
    compact,
    count_rows,
    digest_of_arguments,
    load_index,
    merge_report,
    segment_paths,
    write_results,
)
from hpcq.store.compaction import FAN_OUT

ADDRESSES = {"arc": "a" * 64}
ROWS = 600
KILLS = 40
SEED = 15


def key(doc_id: int) -> RequestKey:
    """Return the key of a document's only request."""
    return RequestKey("arc", "1.0", doc_id, 0, 0, digest_of_arguments("loglikelihood", [doc_id]))


RESPONSES = {key(doc_id): Response(-doc_id / 7, is_greedy=doc_id % 2 == 0) for doc_id in range(ROWS)}


def work(folder: Path, attempt: int, acknowledged: Path) -> None:
    """Answer what no segment answers, one row per segment; record the number of rows after each commit."""
    known = load_index([folder], expect=ADDRESSES).responses
    missing = [row for row in RESPONSES.items() if row[0] not in known]
    with SegmentWriter(folder, attempt=attempt, addresses=ADDRESSES, provenance={}, flush_interval_s=0.0) as writer:
        for number, row in enumerate(missing, len(known) + 1):
            writer.add_all([row])
            acknowledged.write_text(str(number))


def keep_compacting(folder: Path) -> None:
    """Compact as a merge does, again and again."""
    for number in range(1_000_000):
        compact(folder, is_complete=number % 5 == 0)


def start(function: Callable[[], None]) -> int:
    """Run `function` in a forked process and return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        function()
        status = 0
    except BaseException as error:  # noqa: BLE001 - the parent checks the status
        sys.stderr.write(f"{error!r}\n")
    finally:
        os._exit(status)


class Reader:
    """A thread that reads the folder all the time, and checks that what it has seen stays, once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.problems: list[str] = []
        self.reads = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        before = 0
        while not self._is_over.is_set():
            counted = count_rows(self._folder)
            index = load_index([self._folder], expect=ADDRESSES)
            counts = (before, counted, len(index), count_rows(self._folder))
            if list(counts) != sorted(counts) or index.duplicates or index.conflicts or index.set_aside:
                self.problems.append(f"{counts}, {index.duplicates} duplicates, {index.conflicts}, {index.set_aside}")
            before = counts[-1]
            self.reads += 1


def test_random_kills_of_workers_and_compactions_lose_and_double_nothing(tmp_path: Path) -> None:
    """40 kills of a worker or of one of two other compactions; the results equal those of a run without, in bytes."""
    chance, folder, acknowledged = random.Random(SEED), tmp_path / "u", tmp_path / "acknowledged"  # noqa: S311
    folder.mkdir()
    acknowledged.write_text("0")
    attempts = 0

    def start_worker() -> int:
        nonlocal attempts
        attempts += 1
        number = attempts
        return start(lambda: work(folder, number, acknowledged))

    running = {start_worker(): True, **{start(lambda: keep_compacting(folder)): False for _ in range(2)}}
    with Reader(folder) as reader:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 0.2))
            pid = chance.choice([*running])
            is_worker = running.pop(pid)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
            committed = int(acknowledged.read_text() or 0)  # empty: killed while it was written
            assert len(load_index([folder], expect=ADDRESSES)) >= committed
            running[start_worker() if is_worker else start(lambda: keep_compacting(folder))] = is_worker
        for pid, is_worker in running.items():
            if not is_worker:
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert not is_worker or os.waitstatus_to_exitcode(status) == 0
    assert reader.problems == []
    assert reader.reads > 1
    index = load_index([folder], expect=ADDRESSES)
    assert (index.responses, index.duplicates, count_rows(folder)) == (RESPONSES, 0, ROWS)
    compact(folder)
    assert len(segment_paths(folder)) < 4 * FAN_OUT
    compact(folder, is_complete=True)
    assert len(segment_paths(folder)) == 1
    again = load_index([folder], expect=ADDRESSES)
    assert merged(tmp_path / "one.h5", index) == merged(tmp_path / "two.h5", again)


def merged(path: Path, index: object) -> bytes:
    """Return the bytes of the results with the responses in `index`."""
    part = VariantResults(variant="v", index=index, scores=[], provenance={})  # type: ignore[arg-type]
    report = merge_report([("v", [*RESPONSES], index)])  # type: ignore[list-item]
    write_results(path, run="r", provenance={}, variants=[part], merge=report)
    return path.read_bytes()
