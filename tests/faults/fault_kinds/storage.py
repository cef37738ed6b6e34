"""Faults of storage and time: a full disk, damaged segments, wrong clocks and file times."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from hpcq.core.errors import SegmentVanishedError
from hpcq.store.compacted import read_segments
from tests.faults.system_under_test import SystemUnderTest

DAY_S = 86_400
_BLOCK = bytes(65_536)


def fill_disk(system: SystemUnderTest) -> str | None:
    """The file system of the run's folder is filled to the last byte, and freed after some seconds."""
    if system.small_disk is None:
        return None
    filler, started_s = system.small_disk / "filler", time.monotonic()
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(_BLOCK)
    # The last bytes, which are fewer than a block.
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0")

    def free() -> None:
        filler.unlink(missing_ok=True)
        system.disk_full_periods_s.append((started_s, time.monotonic()))

    system.schedule_undo("full disk", free, within_s=(1.0, 6.0))
    system.expect_intervention("the disk was full")
    return str(system.small_disk)


def truncate_segment(system: SystemUnderTest) -> str | None:
    """A committed segment is truncated."""
    return _damage(system, lambda path: os.truncate(path, system.random.randrange(path.stat().st_size)))


def flip_bit(system: SystemUnderTest) -> str | None:
    """One bit of a committed segment is flipped."""
    return _damage(system, lambda path: _flip_bit(system, path))


def _flip_bit(system: SystemUnderTest, path: Path) -> None:
    with path.open("r+b") as file:
        offset = system.random.randrange(path.stat().st_size)
        file.seek(offset)
        (before,) = file.read(1)
        file.seek(offset)
        file.write(bytes([before ^ 1 << system.random.randrange(8)]))


def _damage(system: SystemUnderTest, damage: Callable[[Path], None]) -> str | None:
    """Damage an intact segment in place, under its name, as a faulty disk does."""
    intact = [path for path in system.segments() if f"{path.parent.name}/{path.name}" not in system.damaged_segments]
    if not intact:
        return None
    path = system.random.choice(intact)
    variant = path.parent.name.split(".", 1)[1].rsplit(".", 1)[0]
    try:
        rows = [row for segment in read_segments(path) for row in segment.rows()]
        damage(path)
    except (SegmentVanishedError, FileNotFoundError):
        return None  # it was compacted in between
    system.damaged_requests |= {f"{variant} {' '.join(map(str, key))}" for key, _ in rows}
    name = f"{path.parent.name}/{path.name}"
    system.damaged_segments.add(name)
    system.expect_intervention(f"{name} was damaged")
    return name


def set_clocks(system: SystemUnderTest) -> str | None:
    """The wall clock of all workers jumps by seconds to years, forward or back."""
    if system.clock_offset_file is None:
        return None
    offset_s = system.random.choice((-1, 1)) * system.random.choice((5, 3600, DAY_S, 3 * 365 * DAY_S))
    with system.clock_offset_file.open("r+b") as file:
        file.write(struct.pack("q", offset_s))
    return f"{offset_s:+} s"


def change_file_times(system: SystemUnderTest) -> str | None:
    """Files of the run's folder get modification times years in the past or future."""
    files = [path for path in system.layout.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    chosen = system.random.sample(files, min(len(files), 10))
    for path in chosen:
        time_s = time.time() + system.random.choice((-1, 1)) * system.random.uniform(0, 3000 * DAY_S)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (time_s, time_s))
    return f"{len(chosen)} files" if chosen else None
