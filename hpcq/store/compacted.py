"""Compacted files: the rows and attributes of many segments in one HDF5 file, from which each segment can be restored.

Reading a compacted file gives the same segments, bit by bit, as reading their own files: an index does not depend on
whether a folder was compacted. The columns are those of a segment, sorted by task, with one more column that has the
number of each row's segment.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcq.core.errors import SegmentCorruptError
from hpcq.store.checksummed import checksummed_bytes, open_checked, stored_digest
from hpcq.store.compacted_name import CompactedName
from hpcq.store.response_columns import Columns, Table, concatenate, read_columns, write_columns
from hpcq.store.segments import TOKEN_CHARACTERS, Segment, SegmentName, read_segment

COMPACTED_FORMAT = "hpcq-compacted-segments"
COMPACTED_SCHEMA = 1

_FILTERS = {"compression": "gzip", "shuffle": True}

_TaskKey = tuple[str, str, str]
"""Task, task version, address."""


def compacted_file(segments: Sequence[Segment]) -> tuple[CompactedName, bytes]:
    """Return name and content of the file with these segments. The same segments give the same bytes."""
    ordered = sorted(segments, key=lambda segment: str(segment.name))
    positions = [(segment.name.attempt, segment.name.sequence) for segment in ordered]
    parts = sorted(
        ((number, table) for number, segment in enumerate(ordered) for table in segment.tables),
        key=lambda part: _task_key(part[1]),
    )
    columns = concatenate([table.columns for _, table in parts])
    tasks = [
        {"task": key[0], "task_version": key[1], "address": key[2], "rows": sum(len(table) for _, table in group)}
        for key, group in itertools.groupby(parts, key=lambda part: _task_key(part[1]))
    ]

    def fill(file: h5py.File) -> None:
        file.attrs["tasks"] = json.dumps(tasks)
        write_columns(file.create_group("responses"), columns, _FILTERS)
        member = np.repeat([number for number, _ in parts], [len(table) for _, table in parts]).astype("<u4")
        file.create_dataset("segment", data=member, track_times=False, **_FILTERS)
        described = np.frombuffer(json.dumps([*map(_description, ordered)]).encode(), dtype=np.uint8)
        file.create_dataset("segments", data=described, track_times=False, **_FILTERS)

    content = checksummed_bytes(fill, form=COMPACTED_FORMAT, schema=COMPACTED_SCHEMA)
    name = CompactedName(
        first=min(positions),
        last=max(positions),
        segments=len(ordered),
        token=stored_digest(content)[:TOKEN_CHARACTERS],
        rows=len(columns),
    )
    return name, content


def _task_key(table: Table) -> _TaskKey:
    return table.task, table.task_version, table.address


def _description(segment: Segment) -> dict[str, Any]:
    return {
        "name": str(segment.name),
        "digest": segment.digest,
        "created": segment.created,
        "provenance": segment.provenance,
    }


def read_segments(path: Path) -> tuple[Segment, ...]:
    """Read the segments in a file, compacted or not, and verify that the file is complete and unaltered.

    Raises:
        SegmentCorruptError: The file is truncated, altered, foreign or of a later version.
        SegmentVanishedError: There is no such file.
        StorageError: The file system refused to read it.
    """
    name = CompactedName.parse(path.name)
    if name is None:
        return (read_segment(path),)
    with open_checked(path, form=COMPACTED_FORMAT, schema=COMPACTED_SCHEMA) as (file, _):
        columns, number = read_columns(file["responses"]), file["segment"][...]
        tasks = [
            ((row["task"], row["task_version"], row["address"]), int(row["rows"]))
            for row in json.loads(file.attrs["tasks"])
        ]
        described = json.loads(file["segments"][...].tobytes())
        task_number = np.repeat(np.arange(len(tasks)), [rows for _, rows in tasks])
        if {len(columns), len(number), len(task_number)} != {name.rows} or len(described) != name.segments:
            raise SegmentCorruptError(f"{len(columns)} rows of {len(described)} segments; its name has other numbers")
        # Stable: within a segment, the rows keep the order of tasks, and within a task their own.
        order = np.argsort(number, kind="stable")
        ends = np.searchsorted(number[order], np.arange(len(described)), side="right").tolist()
        grouped, task_number = columns.take(order), task_number[order]
        starts = [0, *ends[:-1]]
        return tuple(
            _segment(path, description, [*_tables(grouped, task_number, tasks, start, end)])
            for description, start, end in zip(described, starts, ends, strict=True)
        )


def _tables(
    columns: Columns, task_number: NDArray[np.int64], tasks: Sequence[tuple[_TaskKey, int]], start: int, end: int
) -> Iterator[Table]:
    """Yield one table per task of the rows from `start` to `end`."""
    changes = np.flatnonzero(np.diff(task_number[start:end])) + start + 1
    for first, last in itertools.pairwise([start, *changes.tolist(), end]):
        task, version, address = tasks[task_number[first]][0]
        yield Table(task=task, task_version=version, address=address, columns=columns.slice_rows(first, last))


def _segment(path: Path, description: dict[str, Any], tables: Sequence[Table]) -> Segment:
    name = SegmentName.parse(description["name"])
    if name is None or name.rows != sum(map(len, tables)):
        raise SegmentCorruptError(f"{description['name']}: {sum(map(len, tables))} rows")
    return Segment(
        path=path,
        name=name,
        digest=description["digest"],
        created=description["created"],
        provenance=description["provenance"],
        tables=tuple(tables),
    )
