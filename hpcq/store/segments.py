"""Segments: immutable HDF5 files of responses, the only form in which a worker hands over what it has computed.

Knows how one segment is laid out, named and read. Must not know when one is written, which rows a run expects, nor
merge anything.

A segment's rows stand in one set of columns, sorted by task, and an attribute tells how many are of which task: a group
for each task would cost 12 kB and a millisecond apiece, sixty times over in a segment of MMLU.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import h5py

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.files import listed
from hpcq.store.checksummed import sealed, unsealed
from hpcq.store.columns import Row, Table, columns_of, read_columns, write_columns

SEGMENT_FORMAT = "hpcq-segment"
SEGMENT_SCHEMA = 1

Provenance = Mapping[str, str | int | float | bool]

_NAME = re.compile(r"(?P<attempt>\d{4,})-(?P<sequence>\d{6,})-(?P<token>[0-9a-f]{16})-(?P<rows>\d+)\.h5")


@dataclass(frozen=True, kw_only=True)
class SegmentName:
    """What a segment's file name says: `<attempt>-<sequence>-<token>-<rows>.h5`.

    The token is the beginning of the SHA-256 of the content, so that two processes that run the same attempt at once
    cannot overwrite each other's rows.
    """

    attempt: int
    sequence: int
    token: str
    rows: int

    def __str__(self) -> str:
        return f"{self.attempt:04d}-{self.sequence:06d}-{self.token}-{self.rows}.h5"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """The parts of `name`; None where it is no segment's name."""
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
    """A segment that has been read and proved whole.

    digest: the SHA-256 that its last line tells. created: UTC, ISO 8601.
    """

    path: Path
    name: SegmentName
    digest: str
    created: str
    provenance: Provenance
    tables: tuple[Table, ...]

    def rows(self) -> Iterator[Row]:
        """Key and response of every row."""
        for table in self.tables:
            yield from table.rows()


def segment_bytes(rows: Sequence[Row], addresses: Mapping[str, str], provenance: str) -> bytes:
    """A sealed segment of `rows`, whose tasks have these addresses and one version each; `provenance` is JSON."""

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
        write_columns(file.create_group("responses"), columns_of(ordered))

    return sealed(fill, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA)


def read_segment(path: Path) -> Segment:
    """Read a segment and prove that it is whole.

    Raises:
        SegmentCorruptError: it is cut short, altered, foreign or of a later version; the sentence says which.
        StorageError: the file system refused to read it.
    """
    name = SegmentName.parse(path.name)
    if name is None:
        raise SegmentCorruptError(
            f"{path}: not named as a segment: <attempt>-<sequence>-<token>-<rows>.h5 is expected."
        )
    with unsealed(path, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA) as (file, digest):
        columns = read_columns(file["responses"])
        tasks = json.loads(file.attrs["tasks"])
        ends = [*itertools.accumulate(task["rows"] for task in tasks)]
        if ends[-1:] != [len(columns)] or len(columns) != name.rows:
            raise SegmentCorruptError(f"{len(columns)} rows where its tasks tell {ends[-1:]} and its name {name.rows}")
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
                    columns=columns.part(end - task["rows"], end),
                )
                for task, end in zip(tasks, ends, strict=True)
            ),
        )


def segment_paths(folder: Path) -> list[Path]:
    """The committed segments in `folder`, in the order of their names; none where there is no folder yet.

    Raises:
        StorageError: the file system refused to list the folder.
    """
    return [path for path in listed(folder) if path.suffix == ".h5" and not path.name.startswith(".")]


def count_rows(folder: Path, attempt: int | None = None) -> int:
    """The rows committed in `folder` (by `attempt`), by the segments' names alone; rows computed twice count twice."""
    names = (SegmentName.parse(path.name) for path in segment_paths(folder))
    return sum(name.rows for name in names if name is not None and attempt in (None, name.attempt))
