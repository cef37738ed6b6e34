"""The index: every response of one evaluation that any segment holds, once, whatever the order of the files.

Knows segments; must not know which requests a run expects, nor score anything. A response is never chosen: where
segments disagree about a request, it is reported and left out. One kind of difference is no disagreement: a back end
whose answers depend on what it happens to compute beside them says so, and by how much, in its segments' provenance
("varies"). Of answers of such a back end that differ by no more, that of the first file (by name) stands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.errors import SegmentCorruptError, WorkFailed
from hpcq.store.columns import Columns, Table, joined
from hpcq.store.records import RequestKey, Response, ResponseKind
from hpcq.store.segments import Provenance, Segment, read_segment, segment_paths

VARIES = "varies"
"""In a segment's provenance: by how much a log-likelihood may differ when it is computed again; its texts may, too."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A response, and the first file (by name) that holds it."""

    file: str
    response: Response


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A request to which segments hold different responses, bit by bit; each different one is a claim."""

    key: RequestKey
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True, order=True)
class SetAside:
    """A file that cannot be trusted, and why. `file` is `<unit>/<name>`."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SegmentFacts:
    """What is told of a segment apart from its responses. `rows`: those of this evaluation."""

    file: str
    digest: str
    rows: int
    created: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """One evaluation's responses.

    tables: columns by task, sorted by key, each key once. conflicts: keys that are in no table. duplicates: rows that
    only repeat another, bit by bit; varied: that differ from it no more than their back end says that its answers do.
    ignored: rows of other evaluations. set_aside: files that cannot be trusted. inputs: a digest over everything that
    this index was made from, equal for equal files.
    """

    tables: tuple[Table, ...]
    conflicts: tuple[Conflict, ...]
    set_aside: tuple[SetAside, ...]
    segments: tuple[SegmentFacts, ...]
    duplicates: int
    ignored: int
    inputs: str
    varied: int = 0

    @cached_property
    def responses(self) -> dict[RequestKey, Response]:
        """Key → response; made when first asked for."""
        return {key: response for table in self.tables for key, response in table.rows()}

    def __len__(self) -> int:
        return sum(map(len, self.tables))


def load(folders: Iterable[Path], *, expect: Mapping[str, str]) -> Index:
    """Read every segment in `folders` and keep the rows whose task has the address that `expect` gives it.

    Raises:
        StorageError: the file system refused to read a file.
        WorkFailed: one address stands for two versions of a task.
    """
    read: list[tuple[str, Segment]] = []
    set_aside = []
    paths = {(f"{path.parent.name}/{path.name}", path) for folder in folders for path in segment_paths(folder)}
    for file, path in sorted(paths):
        try:
            read.append((file, read_segment(path)))
        except SegmentCorruptError as error:
            set_aside.append(SetAside(file=file, reason=str(error)))
    groups: dict[str, list[_Part]] = {}
    facts = []
    for file, segment in read:
        wanted = [table for table in segment.tables if expect.get(table.task) == table.address]
        for table in wanted:
            varies = float(segment.provenance.get(VARIES, 0.0))
            groups.setdefault(table.task, []).append(_Part(file=file, table=table, varies=varies))
        if wanted:
            facts.append(_facts(file, segment, sum(map(len, wanted))))
    settled = [_settle(groups[name]) for name in sorted(groups)]
    return Index(
        tables=tuple(one.table for one in settled),
        conflicts=tuple(conflict for one in settled for conflict in one.conflicts),
        set_aside=tuple(set_aside),
        segments=tuple(facts),
        duplicates=sum(one.duplicates for one in settled),
        ignored=sum(segment.name.rows for _, segment in read) - sum(fact.rows for fact in facts),
        inputs=_inputs(expect, facts, set_aside),
        varied=sum(one.varied for one in settled),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A task's rows in one file."""

    file: str
    table: Table
    varies: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Settled:
    table: Table
    conflicts: list[Conflict]
    duplicates: int
    varied: int


def _settle(parts: list[_Part]) -> _Settled:
    """Sort the rows of one task by key, drop those that repeat another, and take out the keys in conflict.

    Raises:
        WorkFailed: the rows, though of one address, are of different versions of the task.
    """
    first = parts[0].table
    versions = {part.table.task_version: part.file for part in parts}
    if len(versions) > 1:
        raise WorkFailed(
            f"the task '{first.task}' was answered in the versions {versions} under one address:"
            " its address must tell the version of lm-eval; delete the older of these segments."
        )
    columns = joined([part.table.columns for part in parts])
    origin = np.repeat(np.arange(len(parts)), [len(part.table) for part in parts])
    order, starts = _grouped_by_key(columns)
    sizes = np.diff(np.append(starts, len(order)))
    agreed, conflicts, duplicates, varied = [starts[sizes == 1]], [], 0, 0
    contents = _contents(columns) if len(agreed[0]) < len(starts) else []
    for group in np.flatnonzero(sizes > 1).tolist():
        rows = order[starts[group] : starts[group] + sizes[group]].tolist()
        # The files come in the order of their names, and lexsort is stable: the first row is of the first file.
        claims = {contents[row]: row for row in reversed(rows)}
        duplicates += len(rows) - len(claims)
        if len(claims) == 1 or _vary_only(columns, claims.values(), min(parts[origin[row]].varies for row in rows)):
            agreed.append(starts[group : group + 1])
            varied += len(claims) - 1
        else:
            files = [(row, parts[origin[row]].file) for row in sorted(claims.values())]
            conflicts.append(_conflict(first, columns, files))
    kept = columns.take(order[np.sort(np.concatenate(agreed))])
    return _Settled(table=replace(first, columns=kept), conflicts=conflicts, duplicates=duplicates, varied=varied)


def _vary_only(columns: Columns, rows: Iterable[int], tolerance: float) -> bool:
    """Whether these answers to one request differ by nothing but what their back end says that they may differ by."""
    chosen = columns.take(np.array([*rows]))
    if tolerance <= 0 or len(np.unique(chosen.kind)) > 1:
        return False
    # What is generated has no log-likelihood (NaN). Written so that any other difference which is no number is one.
    is_text = chosen.kind[0] == ResponseKind.GENERATE_UNTIL
    return bool(is_text or np.ptp(chosen.loglikelihood) <= tolerance)


def _grouped_by_key(columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of the rows by key, and where in that order each different key begins."""
    # Big-endian words of the digest sort as its text does, and faster.
    words = np.ascontiguousarray(columns.digest).view(">u8").reshape(len(columns), 4).astype("<u8")
    parts: list[NDArray[Any]] = [columns.doc_id, columns.request_index, columns.repeat, *words.T]
    order = np.lexsort(parts[::-1])
    differs = np.zeros(len(columns), dtype=bool)
    differs[:1] = True
    for part in parts:
        differs[1:] |= part[order][1:] != part[order][:-1]
    return order, np.flatnonzero(differs)


def _contents(columns: Columns) -> list[tuple[Any, ...]]:
    """Every row's response as it is stored: floats by their bits, so that NaN equals NaN and -0.0 is not 0.0."""
    bits = columns.loglikelihood.view(np.int64).tolist()
    return [*zip(columns.kind.tolist(), bits, columns.is_greedy.tolist(), columns.texts(), strict=True)]


def _conflict(table: Table, columns: Columns, files: list[tuple[int, str]]) -> Conflict:
    claimed = replace(table, columns=columns.take(np.array([row for row, _ in files])))
    responses = claimed.columns.responses()
    return Conflict(
        key=claimed.keys()[0],
        claims=tuple(Claim(file=file, response=response) for (_, file), response in zip(files, responses, strict=True)),
    )


def _facts(file: str, segment: Segment, rows: int) -> SegmentFacts:
    return SegmentFacts(
        file=file, digest=segment.digest, rows=rows, created=segment.created, provenance=segment.provenance
    )


def _inputs(expect: Mapping[str, str], facts: list[SegmentFacts], set_aside: list[SetAside]) -> str:
    read = [(fact.file, fact.digest) for fact in facts]
    told = [sorted(expect.items()), read, [(item.file, item.reason) for item in set_aside]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
