"""Items of a row: those of a task, or of all tasks of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpcq.report.statistics.item_scores import ItemScores
from hpcq.store import ItemTables, ResultsFile, TaskItems

Metric = tuple[str, str]
"""A metric and lm-eval's filter."""

DOCUMENT, PROMPT = "doc_id", "digest"
"""Fields of an item's name: index of its document, and digest of its first request."""

_KEPT = 16
"""Maximum number of variants whose items stay in memory: a small run is read once, a large one needs bounded memory."""


class RowItems:
    """Reads the items of rows, and keeps those of the last variants."""

    def __init__(self, results: Mapping[str, ResultsFile]) -> None:
        """Read from these files, by name of the run."""
        self.results = results
        self.tables = lru_cache(maxsize=_KEPT)(self._read)

    def _read(self, run: str, variant: str) -> ItemTables:
        return self.results[run].item_tables(variant)

    def find(self, run: str, variant: str, task: str, metric: Metric) -> ItemScores | None:
        """Return the items of a score; None if it is not a mean over items, or the merge has not stored them."""
        tables = self.tables(run, variant)
        by_task = {table.task: table for table in tables.tasks}
        if task in by_task:
            shares = {task: 1.0}
        else:
            groups = (one for one in tables.groups if (one.group, one.metric, one.filter) == (task, *metric))
            shares = dict(next((one.shares for one in groups), {}))
        if not shares or any(metric not in by_task[name].values for name in shares):
            return None
        return _joined([by_task[name] for name in sorted(shares)], metric, shares)


def _joined(tables: list[TaskItems], metric: Metric, shares: Mapping[str, float]) -> ItemScores:
    cells = np.concatenate([table.values[metric] for table in tables])
    sizes = [len(table.doc_id) for table in tables]
    return ItemScores(
        keys=_keys(tables),
        values=cells[:, 0],
        weights=cells[:, 1],
        strata=np.repeat(np.arange(len(tables)), sizes),
        shares=np.array([shares[table.task] for table in tables]),
    )


def _keys(tables: Sequence[TaskItems]) -> NDArray[np.void]:
    """Return names of the items that are equal for equal prompts of the same task, in the order of the data set."""
    width = max(len(table.task.encode()) for table in tables)
    fields = [("task", f"S{width}"), (DOCUMENT, "<i8"), (PROMPT, "S32")]
    keys = np.zeros(sum(len(table.doc_id) for table in tables), fields)
    start = 0
    for table in tables:
        own = keys[start : start + len(table.doc_id)]
        own["task"], own[DOCUMENT], own[PROMPT] = table.task.encode(), table.doc_id, table.digest
        start += len(own)
    return keys
