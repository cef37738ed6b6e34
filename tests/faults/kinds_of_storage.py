"""Faults of what is stored: a full disk, files that are damaged, clocks and time stamps that are wrong.

Knows the layout of a run's folder and how a segment is read. Knows nothing of what hpcq does about it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from hpcq.store.segments import read_segment
from tests.faults.scene import Scene

DAY_S = 86_400
_BLOCK = bytes(65_536)


def fill_disk(scene: Scene) -> str | None:
    """The file system of the run's folder is filled to its last byte, and freed after some seconds."""
    if scene.small_disk is None:
        return None
    filler, began_s = scene.small_disk / "filler", time.monotonic()
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(_BLOCK)
    # The last bytes, which a whole block no longer fits into.
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0")

    def free() -> None:
        filler.unlink(missing_ok=True)
        scene.full.append((began_s, time.monotonic()))

    scene.later("full disk", free, within_s=(1.0, 6.0))
    scene.call_user("the disk was full")
    return str(scene.small_disk)


def tear(scene: Scene) -> str | None:
    """A committed segment loses its end."""
    return _damage(scene, lambda path: os.truncate(path, scene.random.randrange(path.stat().st_size)))


def flip(scene: Scene) -> str | None:
    """One bit of a committed segment is turned."""
    return _damage(scene, lambda path: _turn_a_bit(scene, path))


def _turn_a_bit(scene: Scene, path: Path) -> None:
    with path.open("r+b") as file:
        place = scene.random.randrange(path.stat().st_size)
        file.seek(place)
        (before,) = file.read(1)
        file.seek(place)
        file.write(bytes([before ^ 1 << scene.random.randrange(8)]))


def _damage(scene: Scene, spoil: Callable[[Path], None]) -> str | None:
    """Spoil a sound segment in place, as a sick disk does: under its name, without a trace."""
    sound = [path for path in scene.segments() if f"{path.parent.name}/{path.name}" not in scene.damaged]
    if not sound:
        return None
    path = scene.random.choice(sound)
    variant = path.parent.name.split(".", 1)[1].rsplit(".", 1)[0]
    scene.forgiven |= {f"{variant} {' '.join(map(str, key))}" for key, _ in read_segment(path).rows()}
    spoil(path)
    name = f"{path.parent.name}/{path.name}"
    scene.damaged.add(name)
    scene.call_user(f"{name} was damaged")
    return name


def jump(scene: Scene) -> str | None:
    """The wall clock of every worker jumps, by seconds or by years, forward or back."""
    if scene.clock is None:
        return None
    offset_s = scene.random.choice((-1, 1)) * scene.random.choice((5, 3600, DAY_S, 3 * 365 * DAY_S))
    with scene.clock.open("r+b") as file:
        file.write(struct.pack("q", offset_s))
    return f"{offset_s:+} s"


def touch(scene: Scene) -> str | None:
    """Files of the run's folder get time stamps of years ago, or to come."""
    found = [path for path in scene.layout.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    chosen = scene.random.sample(found, min(len(found), 10))
    for path in chosen:
        moment_s = time.time() + scene.random.choice((-1, 1)) * scene.random.uniform(0, 3000 * DAY_S)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (moment_s, moment_s))
    return f"{len(chosen)} files" if chosen else None
