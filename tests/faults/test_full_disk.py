"""The segment writer on a full or read-only file system: it waits and continues, or reports an error."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcq.core.errors import StorageError
from hpcq.store import RequestKey, Response, SegmentWriter, count_rows, digest_of_arguments, load_index

ADDRESSES = {"arc": "a" * 64}
DEADLINE_S = 600.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    process = subprocess.run(mount, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"the right to mount a small disk is not on this machine: {process.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk to the last byte; return the file whose removal frees it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def rows(start: int, end: int) -> list[tuple[RequestKey, Response]]:
    """Return responses to the documents `start` to `end` - 1."""
    return [
        (
            RequestKey("arc", "1.0", number, 0, 0, digest_of_arguments("loglikelihood", [number])),
            Response(-number / 7, is_greedy=True),
        )
        for number in range(start, end)
    ]


def segment_writer(disk: Path, *, retry_timeout_s: float = 600.0, max_rows: int = 4096) -> SegmentWriter:
    """Return a writer that commits every 50 ms."""
    return SegmentWriter(
        disk / "u",
        attempt=1,
        addresses=ADDRESSES,
        provenance={},
        flush_interval_s=0.05,
        max_rows=max_rows,
        retry_timeout_s=retry_timeout_s,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, with a deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"condition not met after {DEADLINE_S:g} s"
        time.sleep(0.02)


def test_work_continues_while_the_disk_is_full_and_is_committed_when_there_is_space(disk: Path) -> None:
    """The writer's own thread retries the commit: the worker need not add rows, flush or close."""
    with segment_writer(disk) as writer:
        writer.add_all(rows(0, 10))
        wait_until(lambda: count_rows(disk / "u") == 10)
        ballast = fill(disk)
        for start in range(10, 60, 10):
            writer.add_all(rows(start, start + 10))
        wait_until(lambda: writer._storage_error is not None)
        assert count_rows(disk / "u") == 10
        ballast.unlink()
        wait_until(lambda: count_rows(disk / "u") == 60)
    assert dict(rows(0, 60)) == load_index([disk / "u"], expect=ADDRESSES).responses


def test_adding_rows_blocks_when_too_many_are_pending(disk: Path) -> None:
    """Memory is bounded: with four times a segment's rows pending, the worker waits until there is space."""
    ballast = fill(disk)
    added: list[int] = []

    def work() -> None:
        with segment_writer(disk, max_rows=10) as writer:
            for start in range(0, 200, 10):
                writer.add_all(rows(start, start + 10))
                added.append(start + 10)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: len(added) == 4)
    time.sleep(0.5)  # in which a worker that does not wait would add more
    assert added == [10, 20, 30, 40]
    ballast.unlink()
    worker.join(DEADLINE_S)
    assert dict(rows(0, 200)) == load_index([disk / "u"], expect=ADDRESSES).responses


def test_a_full_disk_is_an_error_after_the_timeout(disk: Path) -> None:
    """Committed segments are intact; with free space, a second attempt commits the rows that the first could not."""
    with segment_writer(disk) as writer:
        writer.add_all(rows(0, 10))
    ballast = fill(disk)
    impatient = segment_writer(disk, retry_timeout_s=0.3)
    with pytest.raises(StorageError, match="the disk is full: free some space") as raised, impatient:
        impatient.add_all(rows(10, 20))
    assert "\n" not in str(raised.value)
    assert ".part" not in str(raised.value)
    ballast.unlink()
    with segment_writer(disk) as writer:
        writer.add_all(rows(10, 20))
    index = load_index([disk / "u"], expect=ADDRESSES)
    assert (index.responses, index.duplicates, index.set_aside) == (dict(rows(0, 20)), 0, ())


@pytest.mark.parametrize("exit_exception", [SystemExit, KeyboardInterrupt])
def test_an_exiting_process_tries_to_commit_once(disk: Path, exit_exception: type[BaseException]) -> None:
    """A job that is being terminated has seconds, not the ten minutes of retries that a running one has."""
    fill(disk)

    def work() -> None:
        with segment_writer(disk) as writer:
            writer.add_all(rows(0, 10))
            raise exit_exception

    with pytest.raises(StorageError, match="the disk is full"):
        work()


def test_a_read_only_disk_is_an_error_immediately(disk: Path) -> None:
    """The writer does not wait, because the state does not pass by itself; it keeps the rows for a later flush."""
    writer = segment_writer(disk)

    def work() -> None:
        with writer:
            writer.add_all(rows(0, 10))
            writer.flush()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            writer.add_all(rows(10, 20))

    with pytest.raises(StorageError, match="the file system is read-only"):
        work()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    writer.flush()
    assert dict(rows(0, 20)) == load_index([disk / "u"], expect=ADDRESSES).responses
