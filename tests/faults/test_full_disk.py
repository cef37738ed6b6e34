"""A disk that is full, or read-only, really: work waits, goes on after the cure, or ends in a sentence."""

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
DEADLINE_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    told = subprocess.run(mount, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip(f"the right to mount a small disk is not on this machine: {told.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room for as much as a byte; the file to remove as a cure."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def rows(start: int, end: int) -> list[tuple[RequestKey, Response]]:
    """Responses to some documents."""
    return [
        (
            RequestKey("arc", "1.0", number, 0, 0, digest_of_arguments("loglikelihood", [number])),
            Response(-number / 7, is_greedy=True),
        )
        for number in range(start, end)
    ]


def writer(disk: Path, *, patience_s: float = 600.0, max_rows: int = 4096) -> SegmentWriter:
    """A writer that checkpoints every 50 ms."""
    return SegmentWriter(
        disk / "u",
        attempt=1,
        addresses=ADDRESSES,
        provenance={},
        flush_interval_s=0.05,
        max_rows=max_rows,
        retry_timeout_s=patience_s,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, with a deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def test_work_goes_on_while_the_disk_is_full_and_is_committed_once_there_is_room(disk: Path) -> None:
    """Nobody adds, flushes or ends anything after the cure: the timekeeper sees that there is room."""
    with writer(disk) as live:
        live.add_all(rows(0, 10))
        wait_until(lambda: count_rows(disk / "u") == 10)
        ballast = fill(disk)
        for start in range(10, 60, 10):
            live.add_all(rows(start, start + 10))
        wait_until(lambda: live._storage_error is not None)
        assert count_rows(disk / "u") == 10
        ballast.unlink()
        wait_until(lambda: count_rows(disk / "u") == 60)
    assert dict(rows(0, 60)) == load_index([disk / "u"], expect=ADDRESSES).responses


def test_who_adds_waits_when_too_much_waits(disk: Path) -> None:
    """Memory is bounded: past four times the rows of a segment the worker stands still until there is room."""
    ballast = fill(disk)
    added: list[int] = []

    def work() -> None:
        with writer(disk, max_rows=10) as live:
            for start in range(0, 200, 10):
                live.add_all(rows(start, start + 10))
                added.append(start + 10)

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(lambda: len(added) == 4)
    time.sleep(0.5)  # time to do wrong
    assert added == [10, 20, 30, 40]
    ballast.unlink()
    worker.join(DEADLINE_S)
    assert dict(rows(0, 200)) == load_index([disk / "u"], expect=ADDRESSES).responses


def test_when_patience_ends_the_work_does_in_a_sentence_and_goes_on_after_the_cure(disk: Path) -> None:
    """What was committed is sound; a second attempt, once there is room, adds what the first could not."""
    with writer(disk) as live:
        live.add_all(rows(0, 10))
    ballast = fill(disk)
    hasty = writer(disk, patience_s=0.3)
    with pytest.raises(StorageError, match="the disk is full: free some room") as raised, hasty:
        hasty.add_all(rows(10, 20))
    assert "\n" not in str(raised.value)
    assert ".part" not in str(raised.value)
    ballast.unlink()
    with writer(disk) as live:
        live.add_all(rows(10, 20))
    index = load_index([disk / "u"], expect=ADDRESSES)
    assert (index.responses, index.duplicates, index.set_aside) == (dict(rows(0, 20)), 0, ())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("leave", [SystemExit, KeyboardInterrupt])
def test_who_is_told_to_leave_tries_once(disk: Path, leave: type[BaseException]) -> None:
    """A job that is being ended has seconds, not the ten minutes of patience that its work would have."""
    fill(disk)

    def be_told() -> None:
        with writer(disk) as live:
            live.add_all(rows(0, 10))
            raise leave

    with pytest.raises(StorageError, match="the disk is full"):
        be_told()


def test_a_read_only_disk_is_a_sentence_at_once(disk: Path) -> None:
    """Nobody waits for what will not pass by itself; the rows are kept for the cure."""
    live = writer(disk)

    def work() -> None:
        with live:
            live.add_all(rows(0, 10))
            live.flush()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            live.add_all(rows(10, 20))

    with pytest.raises(StorageError, match="the file system is read-only"):
        work()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    live.flush()
    assert dict(rows(0, 20)) == load_index([disk / "u"], expect=ADDRESSES).responses
