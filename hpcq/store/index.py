"""Index of an evaluation's segments: each response once, with conflicts, duplicates and damaged files.

The index never chooses between different responses to a request: a conflict is reported, and the request has no
response in the index. There is one exception. If a backend's results depend on which requests it computes together, it
states a tolerance in the provenance of its segments ("varies"). Among responses of such a backend that differ by no
more than the tolerance, the one in the first file (by name) is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.errors import WorkerError
from hpcq.core.frozen import dataclass
from hpcq.store.records import RequestKey, Response, ResponseKind
from hpcq.store.response_columns import Columns, Table, concatenate
from hpcq.store.segments import Provenance, Segment
from hpcq.store.top_logprobs import unpack
from hpcq.store.unit_folder import read_folder

TOLERANCE_ATTRIBUTE = "varies"
"""Provenance key: maximum difference of a log-likelihood that is computed again. Generated texts may differ too."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A response in a conflict, and the first file (by name) that contains it."""

    file: str
    response: Response


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A request with different responses in segments (compared bit by bit): one claim per distinct response."""

    key: RequestKey
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True, order=True)
class SetAsideFile:
    """A file that cannot be trusted, with the reason. `file` is `<unit>/<name>`."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """Description of a segment without its responses. `rows` counts the rows of this evaluation."""

    file: str
    digest: str
    rows: int
    created: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """Responses of one evaluation.

    Attributes:
        tables: One table per task, sorted by key, each key once.
        conflicts: Requests with different responses; their keys are in no table.
        set_aside: Files that cannot be trusted.
        segments: Segments with rows of this evaluation.
        duplicates: Number of rows that repeat another bit by bit.
        ignored: Number of rows of other evaluations.
        inputs: Digest over everything from which the index was made; equal for equal files.
        varied: Number of rows that differ from the response in use within the tolerance of their backend.
    """

    tables: tuple[Table, ...]
    conflicts: tuple[Conflict, ...]
    set_aside: tuple[SetAsideFile, ...]
    segments: tuple[SegmentInfo, ...]
    duplicates: int
    ignored: int
    inputs: str
    varied: int = 0

    @cached_property
    def responses(self) -> dict[RequestKey, Response]:
        """Key → response, built on first access."""
        return {key: response for table in self.tables for key, response in table.rows()}

    def __len__(self) -> int:
        return sum(map(len, self.tables))


def load_index(folders: Iterable[Path], *, expect: Mapping[str, str]) -> Index:
    """Read all segments in `folders` and index the rows of one evaluation.

    Args:
        folders: Folders of units.
        expect: Task → content address; rows with another address are ignored.

    Raises:
        StorageError: The file system refused to read a file.
        WorkerError: Rows with one address have different versions of a task.
    """
    read: list[tuple[str, Segment]] = []
    set_aside = []
    for folder in sorted(set(folders)):
        content = read_folder(folder)
        read += [(f"{folder.name}/{name}", segment) for name, segment in content.segments.items()]
        set_aside += [SetAsideFile(file=f"{folder.name}/{name}", reason=why) for name, why in content.damaged.items()]
    read.sort(key=lambda item: item[0])
    set_aside.sort()
    groups: dict[str, list[_Part]] = {}
    infos = []
    for file, segment in read:
        wanted = [table for table in segment.tables if expect.get(table.task) == table.address]
        for table in wanted:
            tolerance = float(segment.provenance.get(TOLERANCE_ATTRIBUTE, 0.0))
            groups.setdefault(table.task, []).append(_Part(file=file, table=table, tolerance=tolerance))
        if wanted:
            infos.append(_segment_info(file, segment, sum(map(len, wanted))))
    merged = [_merge_parts(groups[name]) for name in sorted(groups)]
    return Index(
        tables=tuple(one.table for one in merged),
        conflicts=tuple(conflict for one in merged for conflict in one.conflicts),
        set_aside=tuple(set_aside),
        segments=tuple(infos),
        duplicates=sum(one.duplicates for one in merged),
        ignored=sum(segment.name.rows for _, segment in read) - sum(info.rows for info in infos),
        inputs=_inputs(expect, infos, set_aside),
        varied=sum(one.varied for one in merged),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Rows of one task in one file."""

    file: str
    table: Table
    tolerance: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _MergedTask:
    table: Table
    conflicts: list[Conflict]
    duplicates: int
    varied: int


def _merge_parts(parts: list[_Part]) -> _MergedTask:
    """Sort the rows of one task by key, drop duplicates, and remove the keys in conflict.

    Raises:
        WorkerError: The rows have one address and different versions of the task.
    """
    first = parts[0].table
    versions = {part.table.task_version: part.file for part in parts}
    if len(versions) > 1:
        raise WorkerError(
            f"the task '{first.task}' has responses of the versions {versions} under one address, which must depend on "
            "the version of lm-eval; delete the older of these segments."
        )
    columns = concatenate([part.table.columns for part in parts])
    origin = np.repeat(np.arange(len(parts)), [len(part.table) for part in parts])
    order, starts = _grouped_by_key(columns)
    sizes = np.diff(np.append(starts, len(order)))
    agreed, conflicts, duplicates, varied = [starts[sizes == 1]], [], 0, 0
    contents = _contents(columns) if len(agreed[0]) < len(starts) else []
    for group in np.flatnonzero(sizes > 1).tolist():
        rows = order[starts[group] : starts[group] + sizes[group]].tolist()
        # Files are read in the order of their names, and lexsort is stable: the first row is from the first file.
        claims = {contents[row]: row for row in reversed(rows)}
        duplicates += len(rows) - len(claims)
        tolerance = min(parts[origin[row]].tolerance for row in rows)
        if len(claims) == 1 or _is_within_tolerance(columns, claims.values(), tolerance):
            agreed.append(starts[group : group + 1])
            varied += len(claims) - 1
        else:
            files = [(row, parts[origin[row]].file) for row in sorted(claims.values())]
            conflicts.append(_conflict(first, columns, files))
    kept = columns.take(order[np.sort(np.concatenate(agreed))])
    return _MergedTask(table=replace(first, columns=kept), conflicts=conflicts, duplicates=duplicates, varied=varied)


def _is_within_tolerance(columns: Columns, rows: Iterable[int], tolerance: float) -> bool:
    """Return whether these responses to one request differ by no more than the tolerance of their backend."""
    chosen = columns.take(np.array([*rows]))
    if tolerance <= 0 or len(np.unique(chosen.kind)) > 1:
        return False
    # Generated text has no log-likelihood (NaN). For other kinds, a NaN difference compares as False: not within.
    is_text = chosen.kind[0] == ResponseKind.GENERATE_UNTIL
    # The tolerance is that of one log-likelihood. A window of a fidelity panel is a sum over its positions.
    terms = len(unpack(chosen.texts()[0]).next_logprobs) if chosen.kind[0] == ResponseKind.TOP_LOGPROBS else 1
    return bool(is_text or np.ptp(chosen.loglikelihood) <= tolerance * terms)


def _grouped_by_key(columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the rows by key, and the positions in that order at which the key changes."""
    # Big-endian words of the digest sort like its text, and faster.
    words = np.ascontiguousarray(columns.digest).view(">u8").reshape(len(columns), 4).astype("<u8")
    parts: list[NDArray[Any]] = [columns.doc_id, columns.request_index, columns.repeat, *words.T]
    order = np.lexsort(parts[::-1])
    differs = np.zeros(len(columns), dtype=bool)
    differs[:1] = True
    for part in parts:
        differs[1:] |= part[order][1:] != part[order][:-1]
    return order, np.flatnonzero(differs)


def _contents(columns: Columns) -> list[tuple[Any, ...]]:
    """Return each row's response as stored, floats as bits: NaN equals NaN, and -0.0 differs from 0.0."""
    bits = columns.loglikelihood.view(np.int64).tolist()
    return [*zip(columns.kind.tolist(), bits, columns.is_greedy.tolist(), columns.texts(), strict=True)]


def _conflict(table: Table, columns: Columns, files: list[tuple[int, str]]) -> Conflict:
    claimed = replace(table, columns=columns.take(np.array([row for row, _ in files])))
    responses = claimed.columns.responses()
    return Conflict(
        key=claimed.keys()[0],
        claims=tuple(Claim(file=file, response=response) for (_, file), response in zip(files, responses, strict=True)),
    )


def _segment_info(file: str, segment: Segment, rows: int) -> SegmentInfo:
    return SegmentInfo(
        file=file, digest=segment.digest, rows=rows, created=segment.created, provenance=segment.provenance
    )


def _inputs(expect: Mapping[str, str], infos: list[SegmentInfo], set_aside: list[SetAsideFile]) -> str:
    read = [(info.file, info.digest) for info in infos]
    document = [sorted(expect.items()), read, [(item.file, item.reason) for item in set_aside]]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()
