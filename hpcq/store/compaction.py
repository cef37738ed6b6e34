"""Compaction: the files of a unit's folder are replaced by fewer files with the same segments.

Files are grouped by size like the digits of a number: `FAN_OUT` files of one level become one file of the next level.
So each response is written again at most once per level, and a folder with n segments has fewer than `FAN_OUT` files on
each of its 1 + log(n) / log(FAN_OUT) levels: at most 60 for 65,535 segments. Any process may compact a folder at any
time, several at once, and may be killed at any time: a file is deleted only after all of its segments were read back
from another one, and what a killed process left is deleted by the next compaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from hpcq.core.errors import SegmentCorruptError, SegmentVanishedError
from hpcq.core.files import committed_file, storage_errors
from hpcq.core.frozen import dataclass
from hpcq.store.compacted import compacted_file, read_segments
from hpcq.store.compacted_name import CompactedName
from hpcq.store.segments import Segment, SegmentName
from hpcq.store.unit_folder import begin_deletion, list_files, may_overlap, parse_name

FAN_OUT = 16
"""Number of files of one level that become one file."""
MAX_BYTES = 32 << 20
"""A file of this size is not compacted again: it bounds the memory of a compaction, and what one damaged file costs."""

_MAX_GROUP_FILES, _MAX_GROUP_BYTES = FAN_OUT**2, 4 * MAX_BYTES


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    name: SegmentName | CompactedName
    size: int

    @property
    def level(self) -> int:
        segments, level = self.name.segments if isinstance(self.name, CompactedName) else 1, 0
        while segments >= FAN_OUT:
            segments, level = segments // FAN_OUT, level + 1
        return level


def compact(folder: Path, *, is_complete: bool = False, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Compact the files of a unit's folder. Damaged files stay as they are.

    Args:
        folder: Folder of the unit.
        is_complete: No more segments are expected: all files become one, as far as `MAX_BYTES` permits.
        should_stop: Whether to return at the next opportunity.

    Raises:
        StorageError: The file system refused to read or to write.
    """
    _delete_contained(folder)
    skipped: set[str] = set()
    while not should_stop() and (group := _next_group(_files(folder), skipped, is_complete=is_complete)):
        segments: dict[str, Segment] = {}
        read: list[Path] = []
        for file in group:
            if should_stop():
                return
            try:
                segments.update((str(segment.name), segment) for segment in read_segments(file.path))
                read.append(file.path)
            except SegmentVanishedError:
                continue  # another process has compacted it
            except SegmentCorruptError:
                skipped.add(file.path.name)
        if len(read) < 2 or not _replace(folder, read, [*segments.values()]):  # noqa: PLR2004 - one file is compact
            skipped.update(path.name for path in read)


def _files(folder: Path) -> list[_File]:
    found = []
    for path in list_files(folder):
        name = parse_name(path.name)
        if name is not None:
            with suppress(FileNotFoundError), storage_errors(path):
                found.append(_File(path=path, name=name, size=path.stat().st_size))
    return found


def _next_group(files: Sequence[_File], skipped: Collection[str], *, is_complete: bool) -> list[_File]:
    """Return files to be replaced by one; none if the folder is compact."""
    levels: dict[int, list[_File]] = {}
    for file in files:
        if file.path.name not in skipped and file.size < MAX_BYTES:
            levels.setdefault(0 if is_complete else file.level, []).append(file)
    for _, candidates in sorted(levels.items()):
        if len(candidates) >= (2 if is_complete else FAN_OUT):
            group, size = [], 0
            for file in candidates[:_MAX_GROUP_FILES]:
                size += file.size
                if size > _MAX_GROUP_BYTES:
                    break
                group.append(file)
            return group
    return []


def _replace(folder: Path, paths: Sequence[Path], segments: Sequence[Segment]) -> bool:
    """Commit one file with `segments`, verify it and delete `paths`, which have them; return False if it differs."""
    name, content = compacted_file(segments)
    target = folder / str(name)
    with committed_file(target) as temporary:
        temporary.write_bytes(content)
    try:
        stored = {str(segment.name): segment for segment in read_segments(target)}
    except SegmentCorruptError:
        return False
    if not all(segment.equals(stored.get(str(segment.name))) for segment in segments):
        return False
    _delete(folder, [path for path in paths if path != target])
    return True


def _delete_contained(folder: Path) -> None:
    """Delete files all of whose segments are in another file: a compaction was killed before it deleted them."""
    files = _files(folder)
    if not may_overlap(file.name for file in files):
        return
    members: dict[Path, frozenset[str]] = {}
    for file in files:
        with suppress(SegmentCorruptError):
            members[file.path] = frozenset(str(segment.name) for segment in read_segments(file.path))
    # Of equal files the first by name stays, also if another process decides at the same time.
    contained = [
        path
        for path, own in members.items()
        if any(own < other or (own == other and kept < path) for kept, other in members.items() if kept != path)
    ]
    if contained:
        _delete(folder, contained)


def _delete(folder: Path, paths: Sequence[Path]) -> None:
    begin_deletion(folder)
    for path in paths:
        with storage_errors(path):
            path.unlink(missing_ok=True)
