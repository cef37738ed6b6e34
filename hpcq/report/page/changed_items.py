"""Items that a variant answers otherwise than its baseline, with both responses, read from `results.h5`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.report.rows import Row
from hpcq.store import Columns, ItemTables, ResponseKind, ResultsFile, TaskItems
from hpcq.store.item_scores import NO_TARGET

MAX_ITEMS, MAX_ITEMS_OF_ROW = 2000, 20
"""Items of a page and of a row that are read; the others are counted."""

LONGEST_ANSWER = 20_000
"""Bytes of a generated text that are read from each of its ends."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Responses to an item.

    Attributes:
        loglikelihoods: Of each request, usually one per choice; empty for generated text.
        text: The first generated text; None if there is none.
        length: Bytes of the whole text.
    """

    loglikelihoods: tuple[float, ...] = ()
    text: str | None = None
    length: int = 0


@dataclass(frozen=True, kw_only=True)
class ChangedItem:
    """An item whose score differs between a variant and its baseline.

    Attributes:
        task: Name of the task; of a group, the task with the item.
        doc_id: Index of the item in its data set.
        digest: Digest of the item's first request.
        baseline_value: Score of the baseline.
        value: Score of the variant.
        target: Index of the right choice; None if there are no choices.
        baseline: Response of the baseline; None if it is not stored.
        own: Response of the variant.
    """

    task: str
    doc_id: int
    digest: str
    baseline_value: float
    value: float
    target: int | None
    baseline: Answer | None
    own: Answer | None


@dataclass(frozen=True, kw_only=True)
class ChangedItems:
    """Items of a row that changed.

    Attributes:
        lower: Items with a lower score than the baseline's.
        higher: Items with a higher score.
        shown: Some of them.
    """

    lower: int
    higher: int
    shown: Sequence[ChangedItem]


RowKey = tuple[str, str, str]
"""Run, variant and task."""


def changed_items(rows: Sequence[Row], results: Mapping[str, ResultsFile]) -> dict[RowKey, ChangedItems]:
    """Return the changed items of each compared main score.

    Args:
        rows: Rows with their comparisons.
        results: Open `results.h5` by name of the run.
    """
    compared = [row for row in rows if row.is_main and row.paired is not None]
    limit = max(1, min(MAX_ITEMS_OF_ROW, MAX_ITEMS // max(1, len(compared))))
    # Rows of a variant are neighbours: two tables of items are in memory at once.
    tables: dict[tuple[str, str], ItemTables] = {}
    found = {}
    for row in compared:
        lines = (row.run, row.variant), (row.baseline_run or row.run, str(row.baseline_variant))
        tables = {line: tables.get(line) or results[line[0]].item_tables(line[1]) for line in lines}
        own, baseline = (_Side(file=results[line[0]], variant=line[1], tables=tables[line]) for line in lines)
        found[row.run, row.variant, row.task] = _changed(row, own, baseline, limit)
    return found


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A variant in its file."""

    file: ResultsFile
    variant: str
    tables: ItemTables

    def table(self, task: str) -> TaskItems:
        return next(one for one in self.tables.tasks if one.task == task)


def member_tasks(tables: ItemTables, task: str) -> list[str]:
    """Return the tasks of a group, sorted; `task` itself if it is none."""
    shares = (one.shares for one in tables.groups if one.group == task)
    return sorted(next(shares, {task: 1.0}))


def _changed(row: Row, own: _Side, baseline: _Side, limit: int) -> ChangedItems:
    metric = (row.metric, row.filter)
    lower: list[tuple[str, int, float]] = []
    higher: list[tuple[str, int, float]] = []
    for task in member_tasks(own.tables, row.task):
        values, others = _means(own.table(task), metric), _means(baseline.table(task), metric)
        changes = values - others
        lower += [(task, int(at), float(changes[at])) for at in np.flatnonzero(changes < 0)]
        higher += [(task, int(at), float(changes[at])) for at in np.flatnonzero(changes > 0)]
    largest = (sorted(some, key=lambda one: -abs(one[2])) for some in (lower, higher))
    mixed = [one for pair in zip_longest(*largest) for one in pair if one is not None]
    chosen = sorted((task, at) for task, at, _ in mixed[:limit])
    return ChangedItems(
        lower=len(lower), higher=len(higher), shown=tuple(_items(chosen, metric, own=own, baseline=baseline))
    )


def _means(table: TaskItems, metric: tuple[str, str]) -> NDArray[np.float64]:
    cells = table.values[metric]
    means: NDArray[np.float64] = np.divide(cells[:, 0], cells[:, 1], out=np.zeros(len(cells)), where=cells[:, 1] != 0)
    return means


def _items(
    chosen: Sequence[tuple[str, int]], metric: tuple[str, str], *, own: _Side, baseline: _Side
) -> Iterator[ChangedItem]:
    for task in dict.fromkeys(task for task, _ in chosen):
        table, other = own.table(task), baseline.table(task)
        own_columns, other_columns = (side.file.columns(side.variant, task) for side in (own, baseline))
        values, others = _means(table, metric), _means(other, metric)
        for at in (at for name, at in chosen if name == task):
            number, target = int(table.doc_id[at]), int(table.target[at])
            yield ChangedItem(
                task=task,
                doc_id=number,
                digest=table.digest[at].decode(errors="backslashreplace"),
                baseline_value=float(others[at]),
                value=float(values[at]),
                target=None if target == NO_TARGET else target,
                baseline=_answer(other_columns, number),
                own=_answer(own_columns, number),
            )


def _answer(columns: Columns | None, doc_id: int) -> Answer | None:
    if columns is None:
        return None
    rows = np.flatnonzero(columns.doc_id == doc_id)
    if not len(rows):
        return None
    if np.all(columns.kind[rows] == ResponseKind.GENERATE_UNTIL):
        start, end = (int(columns.text_offsets[rows[0] + step]) for step in (0, 1))
        return Answer(text=_text(columns.text, start, end), length=end - start)
    own = rows[columns.repeat[rows] == 0]
    ordered = own[np.argsort(columns.request_index[own], kind="stable")]
    return Answer(loglikelihoods=tuple(columns.loglikelihood[ordered].tolist()))


def _text(blob: NDArray[np.uint8], start: int, end: int) -> str:
    """Return a text, or its two ends. Bytes that are not UTF-8 are shown by their codes."""
    if end - start <= 2 * LONGEST_ANSWER:
        return blob[start:end].tobytes().decode(errors="backslashreplace")
    ends = blob[start : start + LONGEST_ANSWER], blob[end - LONGEST_ANSWER : end]
    return " […] ".join(part.tobytes().decode(errors="backslashreplace") for part in ends)
