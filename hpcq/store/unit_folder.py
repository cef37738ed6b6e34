"""Segments of one unit's folder, read while its files may be compacted: each segment once, and none is missed.

A compaction commits the compacted file, replaces the file `.compaction`, and only then deletes the originals. So a
listing during which `.compaction` did not change has, for each committed segment, a file that contained it when the
listing ended; a file that vanishes before it is read is the reason to list again.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hpcq.core.errors import SegmentCorruptError, SegmentVanishedError
from hpcq.core.files import IrregularFileError, read_regular, storage_errors, write_text
from hpcq.core.frozen import dataclass
from hpcq.store.compacted_name import CompactedName, Position
from hpcq.store.segments import Segment, SegmentName, segment_paths

VANISHED_TIMEOUT_S = 120.0
"""Seconds for which a listed file may be missing: an NFS client may list a folder as it was a minute ago (nfs(5))."""

_MIN_PAUSE_S, _MAX_PAUSE_S = 0.01, 10.0
_GENERATION_FILE = ".compaction"


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderContent:
    """Content of a unit's folder.

    Attributes:
        segments: The segments by name, also those in compacted files.
        damaged: Names of the files that cannot be trusted, with the reason.
    """

    segments: Mapping[str, Segment]
    damaged: Mapping[str, str]


def read_folder(folder: Path) -> FolderContent:
    """Read all committed segments in `folder`.

    Raises:
        StorageError: The file system refused to read a file.
    """
    from hpcq.store.compacted import read_segments

    segments: dict[str, Segment] = {}
    damaged: dict[str, str] = {}
    read: set[str] = set()
    for is_last in _tries():
        vanished = False
        for path in list_files(folder):
            if path.name in read:
                continue
            try:
                found = read_segments(path)
            except SegmentVanishedError as error:
                vanished = True
                if is_last:
                    damaged[path.name] = str(error)
                continue
            except SegmentCorruptError as error:
                damaged[path.name] = str(error)
            else:
                segments.update((str(segment.name), segment) for segment in found if str(segment.name) not in segments)
            read.add(path.name)
        if not vanished:
            break
    return FolderContent(segments=segments, damaged=damaged)


def count_rows(folder: Path, attempt: int | None = None) -> int:
    """Return the rows committed to `folder` (by `attempt`). Repeated answers count repeatedly.

    Names are enough, except while originals of a compacted file exist, or if it has several attempts' segments.

    Raises:
        StorageError: The file system refused to list the folder or to read a file.
    """
    for is_last in _tries():
        paths = list_files(folder)
        files = [name for path in paths if (name := parse_name(path.name)) is not None]
        if not may_overlap(files) and not any(_has_some(name, attempt) for name in files):
            return sum(name.rows for name in files if attempt is None or spans(name)[0][0] == attempt)
        try:
            members = {member for path in paths for member in _members(path, ignore_vanished=is_last)}
        except SegmentVanishedError:
            continue
        return sum(member.rows for member in members if attempt in (None, member.attempt))
    raise AssertionError("unreachable")


def list_files(folder: Path) -> list[Path]:
    """Return the files of segments in `folder`, sorted by name, as they were at one moment.

    Raises:
        StorageError: The file system refused to list the folder.
    """
    while True:
        before = _generation(folder)
        paths = segment_paths(folder)
        if _generation(folder) == before:
            return paths


def begin_deletion(folder: Path) -> None:
    """Make readers list `folder` again if they began before: files are deleted whose segments are in another file."""
    write_text(folder / _GENERATION_FILE, secrets.token_hex(8) + "\n")


def parse_name(name: str) -> SegmentName | CompactedName | None:
    """Parse the name of a file of segments; return None for other files."""
    return SegmentName.parse(name) or CompactedName.parse(name)


def spans(name: SegmentName | CompactedName) -> tuple[Position, Position]:
    """Return the positions of the first and the last segment in a file."""
    if isinstance(name, CompactedName):
        return name.first, name.last
    return (name.attempt, name.sequence), (name.attempt, name.sequence)


def may_overlap(files: Iterable[SegmentName | CompactedName]) -> bool:
    """Return whether a compacted file may have segments that are in another file, too: their positions overlap."""
    reach, compacted_reach = (-1, -1), (-1, -1)
    for first, last, is_compacted in sorted((*spans(name), isinstance(name, CompactedName)) for name in files):
        if first <= compacted_reach or (is_compacted and first <= reach):
            return True
        reach = max(reach, last)
        compacted_reach = max(compacted_reach, last) if is_compacted else compacted_reach
    return False


def _has_some(name: SegmentName | CompactedName, attempt: int | None) -> bool:
    """Return whether a file may have segments of the attempt, and has some of another."""
    (first, _), (last, _) = spans(name)
    return attempt is not None and first <= attempt <= last and first != last


def _members(path: Path, *, ignore_vanished: bool) -> Sequence[SegmentName]:
    """Return the names of the segments in a file; none if it cannot be trusted."""
    from hpcq.store.compacted import read_segments

    own = SegmentName.parse(path.name)
    if own is not None:
        return [own]
    try:
        return [segment.name for segment in read_segments(path)]
    except SegmentVanishedError:
        if ignore_vanished:
            return []
        raise
    except SegmentCorruptError:
        return []


def _generation(folder: Path) -> bytes:
    path = folder / _GENERATION_FILE
    try:
        with storage_errors(path):
            return read_regular(path)
    except (FileNotFoundError, IrregularFileError):
        return b""


def _tries() -> Iterator[bool]:
    """Yield whether this try is the last one: at once, then after growing pauses until the timeout."""
    deadline_s, pause_s = time.monotonic() + VANISHED_TIMEOUT_S, _MIN_PAUSE_S
    for number in itertools.count():
        is_last = time.monotonic() >= deadline_s
        yield is_last
        if is_last:
            return
        if number:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
