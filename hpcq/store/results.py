"""`results.h5`: a run's merged responses, scores and provenance in one file that plain h5py reads.

Knows the index and HDF5; must not compute a score. The file has no time of writing in it: the same segments give the
same bytes, however often and by however many merges at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from hpcq.core.errors import RunIncomplete, SegmentCorruptError
from hpcq.core.files import committed_file, storage_faults
from hpcq.store.checksummed import sealed, unsealed
from hpcq.store.columns import Table, read_columns, write_columns
from hpcq.store.index import Conflict, Index, SetAside
from hpcq.store.records import RequestKey, Response
from hpcq.store.segments import Provenance

RESULTS_FORMAT = "hpcq-results"
RESULTS_SCHEMA = 1

_ROOT_ATTRIBUTES = frozenset({"format", "schema", "run", "inputs", "merge", "completions"})
_NONE: Mapping[str, str] = MappingProxyType({})
_FILTERS: Mapping[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}


@dataclass(frozen=True, kw_only=True, order=True)
class Score:
    """One metric of one task (or group of tasks), as lm-eval names it, over `n` documents."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, kw_only=True, order=True)
class MissingRows:
    """How many of a variant's requests to a task have no response."""

    variant: str
    task: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge found: every expected request is found, missing or in conflict.

    unexpected: responses, in the results, that nobody expected. ignored: rows of other evaluations. duplicates, varied:
    rows that repeat another (`hpcq.store.index.Index`).
    """

    expected: int
    found: int
    missing: int
    duplicates: int
    conflicts: tuple[Conflict, ...]
    set_aside: tuple[SetAside, ...]
    unexpected: int = 0
    ignored: int = 0
    varied: int = 0
    missing_from: tuple[MissingRows, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Every expected request is answered, and no answer disputed."""
        return not self.missing and not self.conflicts

    def as_json(self) -> dict[str, Any]:
        """The document of `hpcq merge --json`: numbers, and beside them what they count."""
        return {
            "schema": 1,
            "expected": self.expected,
            "found": self.found,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "varied": self.varied,
            "conflicts": len(self.conflicts),
            "set_aside": len(self.set_aside),
            "unexpected": self.unexpected,
            "ignored": self.ignored,
            "missing_from": [asdict(item) for item in self.missing_from],
            "conflict_details": [_conflict_as_json(conflict) for conflict in self.conflicts],
            "set_aside_details": [asdict(item) for item in self.set_aside],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class VariantResults:
    """What is to be written of a variant; `provenance` tells its model, scheme, tool, recipe, versions and the like."""

    variant: str
    index: Index
    scores: Sequence[Score]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """What is read of a variant without its responses; `rows` by task."""

    variant: str
    provenance: Provenance
    scores: tuple[Score, ...]
    rows: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What `results.h5` holds, but for the responses.

    merge: MergeReport.as_json(). completions: where it lacks something, unit → digest of the word of its completion
    that the merge found before it read any segment.
    """

    run: str
    inputs: str
    provenance: Provenance
    merge: Mapping[str, Any]
    variants: tuple[VariantScores, ...] = ()
    completions: Mapping[str, str] = field(default_factory=dict)


def merge_report(parts: Iterable[tuple[str, Collection[RequestKey], Index]]) -> MergeReport:
    """Compare what is expected of each variant (its id, its requests' keys) with what its index holds."""
    expected = found = unexpected = duplicates = varied = ignored = 0
    conflicts: list[Conflict] = []
    set_aside: set[SetAside] = set()
    missing: Counter[tuple[str, str]] = Counter()
    for variant, keys, index in parts:
        wanted = set(keys)
        disputed = {conflict.key for conflict in index.conflicts}
        held = index.responses.keys()
        expected += len(wanted)
        found += len(wanted & held)
        unexpected += len(held - wanted)
        missing.update((variant, key.task) for key in wanted - held - disputed)
        duplicates += index.duplicates
        varied += index.varied
        ignored += index.ignored
        conflicts += index.conflicts
        set_aside.update(index.set_aside)
    return MergeReport(
        expected=expected,
        found=found,
        missing=missing.total(),
        duplicates=duplicates,
        varied=varied,
        conflicts=tuple(conflicts),
        set_aside=tuple(sorted(set_aside)),
        unexpected=unexpected,
        ignored=ignored,
        missing_from=tuple(
            MissingRows(variant=variant, task=task, rows=rows) for (variant, task), rows in sorted(missing.items())
        ),
    )


def write_results(
    path: Path,
    *,
    run: str,
    provenance: Provenance,
    variants: Iterable[VariantResults],
    merge: MergeReport,
    completions: Mapping[str, str] = _NONE,
) -> None:
    """Commit the results of a run as one file.

    `provenance` (the root's attributes) and each variant's must be functions of the inputs alone, without times of
    merging, for the bytes to be equal each time. `variants` may be a generator: they are held one at a time.
    `completions` (unit → digest of its completion) must have been read before any segment was.

    Raises:
        StorageError: no room, no permission, read-only or stale.
    """

    def fill(file: h5py.File) -> None:
        inputs = {}
        _write_attributes(file, provenance)
        for part in variants:
            inputs[part.variant] = part.index.inputs
            _write_variant(file, part)
        file.attrs["run"] = run
        file.attrs["inputs"] = _inputs_of(inputs)
        file.attrs["merge"] = json.dumps(merge.as_json(), sort_keys=True)
        file.attrs["completions"] = json.dumps(dict(completions) if merge.missing else {}, sort_keys=True)
        _write_documents(file, "conflicts", [_conflict_as_json(conflict) for conflict in merge.conflicts])
        _write_documents(file, "set_aside", [asdict(item) for item in merge.set_aside])

    content = sealed(fill, form=RESULTS_FORMAT, schema=RESULTS_SCHEMA)
    with committed_file(path) as temporary:
        temporary.write_bytes(content)


def results_hold(
    path: Path, *, inputs: Mapping[str, str], provenance: Provenance, completions: Mapping[str, str] = _NONE
) -> bool:
    """Whether `path` was merged from exactly these inputs (variant → its index's `inputs`) under this provenance.

    Where it lacks something, it must also have been merged when these units, and no others, had been completed.
    """
    try:
        results = read_results(path)
    except (RunIncomplete, SegmentCorruptError):
        return False
    saw_them = not results.merge["missing"] or results.completions == dict(completions)
    return saw_them and results.inputs == _inputs_of(inputs) and results.provenance == dict(provenance)


def read_results(path: Path) -> Results:
    """Everything in `path` but the responses.

    Raises:
        RunIncomplete: there is no such file yet.
        SegmentCorruptError: it cannot be trusted.
        StorageError: the file system refused to read it.
    """
    with _opened(path) as file:
        attributes = _attributes(file)
        return Results(
            run=str(attributes["run"]),
            inputs=str(attributes["inputs"]),
            provenance={name: value for name, value in attributes.items() if name not in _ROOT_ATTRIBUTES},
            merge=json.loads(attributes["merge"]),
            variants=tuple(_read_variant(file, name) for name in file.get("responses", ())),
            completions=json.loads(attributes.get("completions", "{}")),
        )


def read_responses(path: Path, variant: str) -> dict[RequestKey, Response]:
    """Every response of `variant` in `path`.

    Raises:
        RunIncomplete: there is no such file yet.
        SegmentCorruptError: it cannot be trusted, or does not hold the variant.
    """
    with _opened(path) as file:
        found = file["responses"].get(group_name(variant))
        if found is None:
            raise RunIncomplete(f"{path}: holds no variant '{variant}'; those it holds: {sorted(file['responses'])}.")
        return {key: response for name, group in found.items() for key, response in _read_table(name, group).rows()}


def group_name(name: str) -> str:
    """`name` as one link of an HDF5 path: all but letters, digits and '_.-~' are percent-encoded."""
    quoted = urllib.parse.quote(name, safe="")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with storage_faults(path):
        is_there = path.is_file()
    if not is_there:
        raise RunIncomplete(f"{path}: there are no merged results yet; `hpcq merge RUN` makes them.")
    with unsealed(path, form=RESULTS_FORMAT, schema=RESULTS_SCHEMA) as (file, _):
        yield file


def _write_variant(file: h5py.File, part: VariantResults) -> None:
    responses = file.create_group(f"responses/{group_name(part.variant)}")
    _write_attributes(responses, part.provenance)
    for table in part.index.tables:
        group = responses.create_group(group_name(table.task))
        _write_attributes(group, {"task_version": table.task_version, "address": table.address, "rows": len(table)})
        write_columns(group, table.columns, _FILTERS)
    scores = file.create_group(f"scores/{group_name(part.variant)}")
    _write_attributes(scores, part.provenance)
    for task in sorted({score.task for score in part.scores}):
        rows = sorted(
            (
                score.metric.encode(),
                score.filter.encode(),
                score.value,
                np.nan if score.stderr is None else score.stderr,
                score.n,
            )
            for score in part.scores
            if score.task == task
        )
        scores.create_dataset(group_name(task), data=np.array(rows, dtype=_score_type(rows)), track_times=False)


def _read_table(name: str, group: h5py.Group) -> Table:
    return Table(
        task=urllib.parse.unquote(name),
        task_version=str(group.attrs["task_version"]),
        address=str(group.attrs["address"]),
        columns=read_columns(group),
    )


def _score_type(rows: Sequence[tuple[Any, ...]]) -> np.dtype[Any]:
    """Fixed-length UTF-8 for the names, as long as the longest: every HDF5 reader knows it."""
    metric, filter_ = (h5py.string_dtype("utf-8", max(1, *(len(row[at]) for row in rows))) for at in (0, 1))
    return np.dtype([("metric", metric), ("filter", filter_), ("value", "<f8"), ("stderr", "<f8"), ("n", "<i8")])


def _read_variant(file: h5py.File, name: str) -> VariantScores:
    responses, scores = file["responses"][name], file["scores"][name]
    return VariantScores(
        variant=urllib.parse.unquote(name),
        provenance=_attributes(responses),
        scores=tuple(
            Score(
                task=urllib.parse.unquote(task),
                metric=metric.decode(),
                filter=filter_.decode(),
                value=value,
                stderr=None if np.isnan(stderr) else stderr,
                n=n,
            )
            for task, dataset in scores.items()
            for metric, filter_, value, stderr, n in dataset[...].tolist()
        ),
        rows={urllib.parse.unquote(task): int(group.attrs["rows"]) for task, group in responses.items()},
    )


def _write_attributes(place: h5py.Group, attributes: Provenance) -> None:
    for name, value in sorted(attributes.items()):
        place.attrs[name] = value


def _attributes(place: h5py.Group) -> dict[str, Any]:
    """The attributes as Python's own types."""
    return {
        name: value.item() if isinstance(value, np.generic) else value for name, value in sorted(place.attrs.items())
    }


def _write_documents(file: h5py.File, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
    """One JSON document an element."""
    texts = [json.dumps(document, sort_keys=True) for document in documents]
    file.create_dataset(name, data=texts, shape=(len(texts),), dtype=h5py.string_dtype(), track_times=False)


def _conflict_as_json(conflict: Conflict) -> dict[str, Any]:
    claims = [{"file": claim.file, **claim.response._asdict()} for claim in conflict.claims]
    return {"key": conflict.key._asdict(), "claims": claims}


def _inputs_of(inputs: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(inputs.items())).encode()).hexdigest()
