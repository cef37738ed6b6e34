"""Segments: immutable HDF5 files of responses, the only form in which a worker hands over what it has computed.

Knows how one segment is written, named and read. Must not know which rows a run expects, nor merge anything.

A segment's rows stand in one set of columns, sorted by task, and an attribute tells how many are of which task: a group
for each task would cost 12 kB and a millisecond apiece, sixty times over in a segment of MMLU.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py

from hpcq.errors import SegmentDamaged
from hpcq.files import committed_file, storage_faults
from hpcq.store.columns import Row, Table, columns_of, read_columns, write_columns
from hpcq.store.records import DIGEST_CHARACTERS, RequestKey, Response
from hpcq.store.sealed import digest_in, sealed, unsealed

SEGMENT_FORMAT = "hpcq-segment"
SEGMENT_SCHEMA = 1

Provenance = Mapping[str, str | int | float | bool]

_TOKEN_CHARACTERS = 16
_NAME = re.compile(r"(?P<attempt>\d{4,})-(?P<sequence>\d{6,})-(?P<token>[0-9a-f]{16})-(?P<rows>\d+)\.h5")
_REQUEST_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARACTERS}}}")
_INT32_END, _INT64_END = 2**31, 2**63


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


class SegmentWriter:
    """Buffers responses and commits them to `folder` as segments; what a commit has written survives anything.

    A segment is committed when rows come in and `flush_interval_s` have passed since the last commit or `max_rows` are
    waiting, at `flush`, and at the end of the `with` block, also when it ends by an exception. Never an empty one.

    Args:
        folder: the unit's own folder; made when needed.
        attempt: the number of the attempt, for the order of names.
        addresses: task → content address of its responses, for every task that may come.
        provenance: who computed this and with what; kept in every segment.
        flush_interval_s: the seconds of work that a kill may cost.
        max_rows: rows in a segment, unless one `add_all` brings more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int,
        addresses: Mapping[str, str],
        provenance: Provenance,
        flush_interval_s: float = 10.0,
        max_rows: int = 4096,
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._addresses = dict(addresses)
        self._versions: dict[str, str] = {}
        self._provenance = json.dumps(dict(provenance), sort_keys=True)
        self._flush_interval_s = flush_interval_s
        self._max_rows = max_rows
        self._sequence = 0
        self._waiting: list[Row] = []
        self._committed_at_s = time.monotonic()

    def add(self, key: RequestKey, response: Response) -> None:
        """Take one response; it is safe once a segment with it is committed."""
        self.add_all([(key, response)])

    def add_all(self, rows: Iterable[Row]) -> None:
        """Take a batch of responses, which is committed in one segment.

        Raises:
            ValueError: a row that no segment can hold; none of the batch is taken.
            StorageFault: a commit that was due failed; the rows are kept for the next try.
        """
        batch = [(key, response) for key, response in rows if self._check(key, response)]
        self._waiting += batch
        waited_s = time.monotonic() - self._committed_at_s
        if len(self._waiting) >= self._max_rows or waited_s >= self._flush_interval_s:
            self.flush()

    def flush(self) -> Path | None:
        """Commit what is waiting; the path of the new segment, or None where nothing was waiting.

        Raises:
            StorageFault: the file system refused; the rows are kept for the next try.
        """
        if not self._waiting:
            return None
        content = sealed(self._fill, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA)
        token = digest_in(content)[:_TOKEN_CHARACTERS]
        name = SegmentName(attempt=self._attempt, sequence=self._sequence, token=token, rows=len(self._waiting))
        path = self._folder / str(name)
        with committed_file(path) as temporary:
            temporary.write_bytes(content)
        self._waiting = []
        self._sequence += 1
        self._committed_at_s = time.monotonic()
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.flush()

    def _fill(self, file: h5py.File) -> None:
        rows = sorted(self._waiting, key=lambda row: row[0].task)
        tasks = [
            {
                "task": task,
                "task_version": self._versions[task],
                "address": self._addresses[task],
                "rows": len([*group]),
            }
            for task, group in itertools.groupby(rows, key=lambda row: row[0].task)
        ]
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        file.attrs["provenance"] = self._provenance
        file.attrs["tasks"] = json.dumps(tasks)
        write_columns(file.create_group("responses"), columns_of(rows))

    def _check(self, key: RequestKey, response: Response) -> bool:
        """Raise for what cannot be written, here where the caller can be told, not at the flush; else True."""
        if key.task not in self._addresses:
            raise ValueError(f"the task '{key.task}' has no address; known are {sorted(self._addresses)}")
        fits = 0 <= key.doc_id < _INT64_END and 0 <= key.request_index < _INT32_END and 0 <= key.repeat < _INT32_END
        if not fits or not _REQUEST_DIGEST.fullmatch(key.digest):
            raise ValueError(f"{key} is no request's key: a number is out of range, or the digest is not one")
        if self._versions.setdefault(key.task, key.task_version) != key.task_version:
            raise ValueError(f"{key} is of another version than '{self._versions[key.task]}', which came before it")
        return bool(response.kind.name)


def read_segment(path: Path) -> Segment:
    """Read a segment and prove that it is whole.

    Raises:
        SegmentDamaged: it is cut short, altered, foreign or of a later version; the sentence says which.
        StorageFault: the file system refused to read it.
    """
    name = SegmentName.parse(path.name)
    if name is None:
        raise SegmentDamaged(f"{path}: not named as a segment: <attempt>-<sequence>-<token>-<rows>.h5 is expected.")
    with unsealed(path, form=SEGMENT_FORMAT, schema=SEGMENT_SCHEMA) as (file, digest):
        columns = read_columns(file["responses"])
        tasks = json.loads(file.attrs["tasks"])
        ends = [*itertools.accumulate(task["rows"] for task in tasks)]
        if ends[-1:] != [len(columns)] or len(columns) != name.rows:
            raise SegmentDamaged(f"{len(columns)} rows where its tasks tell {ends[-1:]} and its name {name.rows}")
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
        StorageFault: the file system refused to list the folder.
    """
    # Path.glob would take a folder that may not be read for an empty one.
    with contextlib.suppress(FileNotFoundError), storage_faults(folder):
        return sorted(path for path in folder.iterdir() if path.suffix == ".h5" and not path.name.startswith("."))
    return []


def count_rows(folder: Path, attempt: int | None = None) -> int:
    """The rows committed in `folder` (by `attempt`), by the segments' names alone; rows computed twice count twice."""
    names = (SegmentName.parse(path.name) for path in segment_paths(folder))
    return sum(name.rows for name in names if name is not None and attempt in (None, name.attempt))
