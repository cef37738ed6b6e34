"""Segments: immutable HDF5 files of responses, the only output of an evaluation worker. Layout, names, reading.

The names say how many responses a folder has: HDF5 is imported where a file is read or written.

All rows of a segment are in one set of columns, sorted by task, and an attribute lists the number of rows per task. One
group per task would cost 12 kB and a millisecond each, and a segment of MMLU has sixty tasks.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.files import list_folder
from hpcq.core.frozen import dataclass

if TYPE_CHECKING:
    import h5py

    from hpcq.store.response_columns import Row, Table

SEGMENT_FORMAT = "hpcq-segment"
SEGMENT_SCHEMA = 1
TOKEN_CHARACTERS = 16

Provenance = Mapping[str, str | int | float | bool]

_NAME = re.compile(r"(?P<attempt>\d{4,})-(?P<sequence>\d{6,})-(?P<token>[0-9a-f]{16})-(?P<rows>\d+)\.h5")


@dataclass(frozen=True, kw_only=True)
class SegmentName:
    """Name of a segment's file: `<attempt>-<sequence>-<token>-<rows>.h5`.

    Attributes:
        attempt: Number of the attempt that wrote it.
        sequence: Index among the segments of that attempt.
        token: First digits of the SHA-256 of the content: two processes that run the same attempt at once cannot
            overwrite each other's rows.
        rows: Number of responses.
    """

    attempt: int
    sequence: int
    token: str
    rows: int

    def __str__(self) -> str:
        return f"{self.attempt:04d}-{self.sequence:06d}-{self.token}-{self.rows}.h5"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """Parse `name`; return None if it is not the name of a segment."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(
            attempt=int(match["attempt"]),
            sequence=int(match["sequence"]),
            token=match["token"],
            rows=int(match["rows"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A segment that was read and whose checksum was verified.

    Attributes:
        path: File of the segment, or the compacted file that contains it.
        name: Parsed name of its own file.
        digest: SHA-256 in the last line of its own file.
        created: Time of writing, UTC, ISO 8601.
        provenance: What computed the responses, with which settings and versions.
        tables: One table per task.
    """

    path: Path
    name: SegmentName
    digest: str
    created: str
    provenance: Provenance
    tables: tuple[Table, ...]

    def rows(self) -> Iterator[Row]:
        """Iterate over key and response of every row."""
        for table in self.tables:
            yield from table.rows()

    def equals(self, other: Segment | None) -> bool:
        """Return whether `other` has the same content, bit by bit, from whichever file it was read."""
        return (
            other is not None
            and (self.name, self.digest, self.created, self.provenance)
            == (other.name, other.digest, other.created, other.provenance)
            and len(self.tables) == len(other.tables)
            and all(one.equals(another) for one, another in zip(self.tables, other.tables, strict=True))
        )


def segment_bytes(rows: Sequence[Row], addresses: Mapping[str, str], provenance: str) -> bytes:
    """Return the content of a segment's file.

    Args:
        rows: Responses; all rows of a task have the same task version.
        addresses: Task → content address of its responses.
        provenance: JSON document.
    """
    from hpcq.store.checksummed import checksummed_bytes
    from hpcq.store.response_columns import columns_from_rows, write_columns

    def fill(file: h5py.File) -> None:
        ordered = sorted(rows, key=lambda row: row[0].task)
        versions = {key.task: key.task_version for key, _ in ordered}
        counts = Counter(key.task for key, _ in ordered)
        tasks = [
            {"task": task, "task_version": versions[task], "address": addresses[task], "rows": count}
            for task, count in counts.items()
        ]
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        file.attrs["provenance"] = provenance
        file.attrs["tasks"] = json.dumps(tasks)
        write_columns(file.create_group("responses"), columns_from_rows(ordered))

    return checksummed_bytes(fill, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA)


def read_segment(path: Path) -> Segment:
    """Read a segment and verify that it is complete and unaltered.

    Raises:
        SegmentCorruptError: The file is truncated, altered, foreign or of a later version.
        StorageError: The file system refused to read it.
    """
    from hpcq.store.checksummed import open_checked
    from hpcq.store.response_columns import Table, read_columns

    name = SegmentName.parse(path.name)
    if name is None:
        raise SegmentCorruptError(
            f"{path}: not the name of a segment, which is <attempt>-<sequence>-<token>-<rows>.h5."
        )
    with open_checked(path, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA) as (file, digest):
        columns = read_columns(file["responses"])
        tasks = json.loads(file.attrs["tasks"])
        row_ends = [*itertools.accumulate(task["rows"] for task in tasks)]
        if row_ends[-1:] != [len(columns)] or len(columns) != name.rows:
            raise SegmentCorruptError(f"{len(columns)} rows; its tasks have {row_ends[-1:]}, its name has {name.rows}")
        return Segment(
            path=path,
            name=name,
            digest=digest,
            created=str(file.attrs["created"]),
            provenance=json.loads(file.attrs["provenance"]),
            tables=tuple(
                Table(
                    task=task["task"],
                    task_version=task["task_version"],
                    address=task["address"],
                    columns=columns.slice_rows(end - task["rows"], end),
                )
                for task, end in zip(tasks, row_ends, strict=True)
            ),
        )


def segment_paths(folder: Path) -> list[Path]:
    """Return the committed segments in `folder`, sorted by name; an empty list if there is no folder yet.

    Raises:
        StorageError: The file system refused to list the folder.
    """
    return [path for path in list_folder(folder) if path.suffix == ".h5" and not path.name.startswith(".")]
