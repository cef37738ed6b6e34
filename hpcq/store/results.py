"""`results.h5`: merged responses, scores and provenance of a run in one file that plain h5py reads.

The file contains no time of writing: the same segments give the same bytes in every merge, also in concurrent ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from hpcq.core.errors import RunIncompleteError, SegmentCorruptError
from hpcq.core.files import committed_file, storage_errors
from hpcq.core.frozen import dataclass
from hpcq.store.checksummed import checksummed_bytes, open_checked
from hpcq.store.index import Conflict, Index, SetAsideFile
from hpcq.store.item_scores import ItemTables, read_items, write_items
from hpcq.store.records import RequestKey, Response
from hpcq.store.response_columns import Columns, Table, write_columns
from hpcq.store.segments import Provenance
from hpcq.store.top_logprobs import PanelTable, is_panel, read_panel, read_task_columns, write_panel

RESULTS_FORMAT = "hpcq-results"
RESULTS_SCHEMA = 1

EVALUATION_ADDRESS = "evaluation_address"
"""Name in the provenance of a variant: the content address of its responses."""

_ROOT_ATTRIBUTES = frozenset({"format", "schema", "run", "inputs", "merge", "completions"})
_NONE: Mapping[str, str] = MappingProxyType({})
_FILTERS: Mapping[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}


@dataclass(frozen=True, kw_only=True, order=True)
class Score:
    """One metric of one task (or group of tasks), named as in lm-eval, over `n` documents."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, kw_only=True, order=True)
class MissingRows:
    """Number of a variant's requests of one task without a response."""

    variant: str
    task: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Counts of a merge: every expected request is found, missing or in conflict.

    Attributes:
        expected: Requests of the run.
        found: Expected requests with a response.
        missing: Expected requests without a response.
        duplicates: Rows that repeat another bit by bit.
        conflicts: Requests with different responses.
        set_aside: Files that cannot be trusted.
        unexpected: Responses in the results to requests that are not expected.
        ignored: Rows of other evaluations.
        varied: Rows that differ from the response in use within the tolerance of their backend.
        missing_from: Missing requests by variant and task.
    """

    expected: int
    found: int
    missing: int
    duplicates: int
    conflicts: tuple[Conflict, ...]
    set_aside: tuple[SetAsideFile, ...]
    unexpected: int = 0
    ignored: int = 0
    varied: int = 0
    missing_from: tuple[MissingRows, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every expected request has a response and none is in conflict."""
        return not self.missing and not self.conflicts

    def as_json(self) -> dict[str, Any]:
        """Return the document of `hpcq merge --json`: numbers, and the details behind them."""
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
    """Results of a variant to be written.

    Attributes:
        variant: Id of the variant.
        index: Its responses.
        scores: Its scores.
        provenance: Model, scheme, tool, recipe, versions and more.
        counts: By task: counts of its responses, by name.
        marks: JSON documents of its marks (`hpcq.verify.marks`).
        items: Scores of single items.
    """

    variant: str
    index: Index
    scores: Sequence[Score]
    provenance: Provenance
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    marks: Sequence[Mapping[str, Any]] = ()
    items: ItemTables = field(default_factory=ItemTables)


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """Scores and provenance of a variant, without its responses.

    Attributes:
        variant: Id of the variant.
        provenance: Model, scheme, tool, recipe, versions and more.
        scores: Its scores.
        rows: Responses by task.
        marks: JSON documents of its marks (`hpcq.verify.marks`); None if the merge did not look for any.
    """

    variant: str
    provenance: Provenance
    scores: tuple[Score, ...]
    rows: Mapping[str, int]
    marks: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """Content of `results.h5` without the responses.

    Attributes:
        run: Name of the run.
        inputs: Digest over all inputs of the merge.
        provenance: Provenance of the merge.
        merge: `MergeReport.as_json()`.
        variants: Scores and provenance by variant.
        completions: If responses are missing: unit → digest of the completion marker that the merge found before it
            read any segment.
        evaluated: Variant → content address of its responses; None: not recorded, by an earlier version.
    """

    run: str
    inputs: str
    provenance: Provenance
    merge: Mapping[str, Any]
    variants: tuple[VariantScores, ...] = ()
    completions: Mapping[str, str] = field(default_factory=dict)
    evaluated: Mapping[str, str | None] = field(default_factory=dict)


def merge_report(parts: Iterable[tuple[str, Collection[RequestKey], Index]]) -> MergeReport:
    """Compare the expected requests of each variant with its index.

    Args:
        parts: Id, expected keys and index of each variant.
    """
    expected = found = unexpected = duplicates = varied = ignored = 0
    conflicts: list[Conflict] = []
    set_aside: set[SetAsideFile] = set()
    missing: Counter[tuple[str, str]] = Counter()
    for variant, keys, index in parts:
        wanted = set(keys)
        disputed = {conflict.key for conflict in index.conflicts}
        answered = index.responses.keys()
        expected += len(wanted)
        found += len(wanted & answered)
        unexpected += len(answered - wanted)
        missing.update((variant, key.task) for key in wanted - answered - disputed)
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

    Args:
        path: File to write.
        run: Name of the run.
        provenance: Attributes of the root. Like the variants' provenance, it must depend only on the inputs (no times
            of merging), so that the same inputs give the same bytes.
        variants: Results by variant. With a generator, only one variant is in memory at a time.
        merge: Report of the merge.
        completions: Unit → digest of its completion marker, read before any segment was.

    Raises:
        StorageError: No space, no permission, read-only or stale.
    """

    def fill(file: h5py.File) -> None:
        inputs = {}
        _write_attributes(file, provenance)
        for part in variants:
            inputs[part.variant] = part.index.inputs
            _write_variant(file, part)
        file.attrs["run"] = run
        file.attrs["inputs"] = _inputs_digest(inputs)
        file.attrs["merge"] = json.dumps(merge.as_json(), sort_keys=True)
        file.attrs["completions"] = json.dumps(dict(completions) if merge.missing else {}, sort_keys=True)
        _write_documents(file, "conflicts", [_conflict_as_json(conflict) for conflict in merge.conflicts])
        _write_documents(file, "set_aside", [asdict(item) for item in merge.set_aside])

    content = checksummed_bytes(fill, form=RESULTS_FORMAT, schema=RESULTS_SCHEMA)
    with committed_file(path) as temporary:
        temporary.write_bytes(content)


def results_are_current(
    path: Path, *, inputs: Mapping[str, str], provenance: Provenance, completions: Mapping[str, str] = _NONE
) -> bool:
    """Return whether `path` was merged from exactly these inputs with this provenance.

    If responses are missing in it, exactly these units must also have been complete when it was merged.

    Args:
        path: The merged results.
        inputs: Variant → `Index.inputs`.
        provenance: Attributes of the root.
        completions: Unit → digest of its completion marker.
    """
    try:
        results = read_results(path, with_variants=False)
    except (RunIncompleteError, SegmentCorruptError):
        return False
    has_same_completions = not results.merge["missing"] or results.completions == dict(completions)
    return has_same_completions and results.inputs == _inputs_digest(inputs) and results.provenance == dict(provenance)


def read_results(path: Path, *, with_variants: bool = True) -> Results:
    """Read everything in `path` except the responses.

    Args:
        path: The merged results.
        with_variants: Read scores and provenance of the variants, too. A run may have hundreds.

    Raises:
        RunIncompleteError: The file does not exist yet.
        SegmentCorruptError: The file cannot be trusted.
        StorageError: The file system refused to read it.
    """
    with _open_results(path) as file:
        attributes = _read_attributes(file)
        return Results(
            run=str(attributes["run"]),
            inputs=str(attributes["inputs"]),
            provenance={name: value for name, value in attributes.items() if name not in _ROOT_ATTRIBUTES},
            merge=json.loads(attributes["merge"]),
            variants=tuple(_read_variant(file, name) for name in file.get("responses", ())) if with_variants else (),
            completions=json.loads(attributes.get("completions", "{}")),
            evaluated={
                urllib.parse.unquote(name): group.attrs.get(EVALUATION_ADDRESS)
                for name, group in file.get("responses", {}).items()
            },
        )


def read_responses(path: Path, variant: str) -> dict[RequestKey, Response]:
    """Read all responses of `variant` in `path`.

    Raises:
        RunIncompleteError: The file does not exist yet, or does not contain the variant.
        SegmentCorruptError: The file cannot be trusted.
    """
    with _open_results(path) as file:
        found = file["responses"].get(group_name(variant))
        if found is None:
            raise RunIncompleteError(f"{path}: no variant '{variant}'; variants: {sorted(file['responses'])}.")
        return {key: response for name, group in found.items() for key, response in _read_table(name, group).rows()}


class ResultsFile:
    """Merged results that are open for reading; verified once, when they were opened."""

    def __init__(self, file: h5py.File) -> None:
        """Read from `file`."""
        self._file = file

    def item_tables(self, variant: str) -> ItemTables:
        """Return the scores of single items of `variant`; empty if an earlier version wrote the file."""
        found = self._file.get(f"items/{group_name(variant)}")
        return ItemTables() if found is None else read_items(found)

    def columns(self, variant: str, task: str) -> Columns | None:
        """Return the responses of `variant` to one task, sorted by their keys; None if there are none."""
        found = self._file.get(f"responses/{group_name(variant)}/{group_name(task)}")
        return None if found is None else read_task_columns(found)

    def panel(self, variant: str, task: str) -> PanelTable | None:
        """Return the windows of the fidelity panel that `variant` has read; None if there are none."""
        found = self._file.get(f"responses/{group_name(variant)}/{group_name(task)}")
        return None if found is None else read_panel(found)

    def task_version(self, variant: str, task: str) -> str:
        """Return the version of the definition of a task, whose responses `variant` has."""
        return str(self._file[f"responses/{group_name(variant)}/{group_name(task)}"].attrs["task_version"])


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[ResultsFile]:
    """Open merged results.

    Raises:
        RunIncompleteError: The file does not exist yet.
        SegmentCorruptError: The file cannot be trusted.
        StorageError: The file system refused to read it.
    """
    with _open_results(path) as file:
        yield ResultsFile(file)


def group_name(name: str) -> str:
    """Return `name` as one part of an HDF5 path: all but letters, digits and '_.-~' are percent-encoded."""
    quoted = urllib.parse.quote(name, safe="")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


@contextlib.contextmanager
def _open_results(path: Path) -> Iterator[h5py.File]:
    with storage_errors(path):
        is_there = path.is_file()
    if not is_there:
        raise RunIncompleteError(f"{path}: no merged results yet; create them with `hpcq merge RUN`.")
    with open_checked(path, form=RESULTS_FORMAT, schema=RESULTS_SCHEMA) as (file, _):
        yield file


def _write_variant(file: h5py.File, part: VariantResults) -> None:
    responses = file.create_group(f"responses/{group_name(part.variant)}")
    _write_attributes(responses, part.provenance)
    for table in part.index.tables:
        group = responses.create_group(group_name(table.task))
        _write_attributes(group, {"task_version": table.task_version, "address": table.address, "rows": len(table)})
        _write_attributes(group, part.counts.get(table.task, {}))
        if is_panel(table.columns):
            write_panel(group, table.columns, dict(_FILTERS))
        else:
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
        data = np.array(rows, dtype=_score_type(rows))
        dataset = scores.create_dataset(group_name(task), data=data, track_times=False)
        marks = [str(mark["sentence"]) for mark in part.marks if mark["task"] in (None, task)]
        _write_attributes(dataset, {"marks": "\n".join(marks)})
    _write_documents(file, f"marks/{group_name(part.variant)}", part.marks)
    items = file.create_group(f"items/{group_name(part.variant)}")
    write_items(items, part.items, {table.task: group_name(table.task) for table in part.items.tasks})


def _read_table(name: str, group: h5py.Group) -> Table:
    return Table(
        task=urllib.parse.unquote(name),
        task_version=str(group.attrs["task_version"]),
        address=str(group.attrs["address"]),
        columns=read_task_columns(group),
    )


def _score_type(rows: Sequence[tuple[Any, ...]]) -> np.dtype[Any]:
    """Return the type of a table of scores: names are fixed-length UTF-8, which every HDF5 reader supports."""
    metric, filter_ = (h5py.string_dtype("utf-8", max(1, *(len(row[at]) for row in rows))) for at in (0, 1))
    return np.dtype([("metric", metric), ("filter", filter_), ("value", "<f8"), ("stderr", "<f8"), ("n", "<i8")])


def _read_variant(file: h5py.File, name: str) -> VariantScores:
    responses, scores, marks = file["responses"][name], file["scores"][name], file.get(f"marks/{name}")
    return VariantScores(
        variant=urllib.parse.unquote(name),
        provenance=_read_attributes(responses),
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
        marks=None if marks is None else tuple(json.loads(document) for document in marks.asstr()[...]),
    )


def _write_attributes(node: h5py.HLObject, attributes: Provenance) -> None:
    for name, value in sorted(attributes.items()):
        node.attrs[name] = value


def _read_attributes(node: h5py.Group) -> dict[str, Any]:
    """Return the attributes as built-in Python types."""
    return {
        name: value.item() if isinstance(value, np.generic) else value for name, value in sorted(node.attrs.items())
    }


def _write_documents(file: h5py.File, name: str, documents: Sequence[Mapping[str, Any]]) -> None:
    """Write a dataset with one JSON document per element."""
    texts = [json.dumps(document, sort_keys=True) for document in documents]
    file.create_dataset(name, data=texts, shape=(len(texts),), dtype=h5py.string_dtype(), track_times=False)


def _conflict_as_json(conflict: Conflict) -> dict[str, Any]:
    claims = [{"file": claim.file, **_response_as_json(claim.response)} for claim in conflict.claims]
    return {"key": conflict.key._asdict(), "claims": claims}


def _response_as_json(response: Response) -> dict[str, Any]:
    """Return the response as plain JSON types; packed log-probabilities by their SHA-256."""
    fields = response._asdict()
    packed = fields.pop("logprobs")
    return fields if packed is None else {**fields, "logprobs_sha256": hashlib.sha256(packed).hexdigest()}


def _inputs_digest(inputs: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(inputs.items())).encode()).hexdigest()
