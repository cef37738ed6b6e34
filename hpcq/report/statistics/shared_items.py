"""Correlation of the differences of two tasks that have the same items, such as truthfulqa_mc1 and truthfulqa_mc2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import combinations
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.statistics.item_scores import Floats, Ints

Correlations = Mapping[tuple[str, str], float]
"""Correlation by the names of two tasks, in any order; a pair that is missing has no items in common."""

NO_CORRELATIONS: Correlations = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemChanges:
    """Contribution of each item of a task to the difference of a variant from its baseline.

    Attributes:
        task: Name of the task.
        documents: Name of the documents of the task, which other tasks may share; '' if they are not known.
        doc_id: Index of each item in these documents, shape (items,).
        prompts: Digest of each item's first request, shape (items,): equal digests are equal items.
        influences: Contribution of each item to the error of the difference, shape (items,).
    """

    task: str
    documents: str
    doc_id: Ints
    prompts: NDArray[np.bytes_]
    influences: Floats


class SharedItems:
    """Correlations of the tasks of each variant.

    Only the items of one variant are in memory at a time. The variants of a model have the same items, so the items
    that two tasks share are found once.
    """

    def __init__(self) -> None:
        """Start without tasks."""
        self._common: dict[tuple[bytes, bytes], tuple[Ints, Ints]] = {}
        self._line: Line | None = None
        self._tasks: list[ItemChanges] = []
        self._found: dict[Line, Correlations] = {}

    def add(self, line: Line, changes: ItemChanges) -> None:
        """Add a task of a variant; all tasks of a variant are added one after another."""
        if line != self._line:
            self._complete()
            self._line = line
        self._tasks.append(changes)

    def correlations(self) -> Mapping[Line, Correlations]:
        """Return, by variant, the correlation of the differences of each pair of tasks that share items.

        Items are independent, so the covariance of two sums over items is the sum over the items in both. If no item
        of a task has changed, the correlation is unknown, and is set to the largest that the shared items permit.
        """
        self._complete()
        return self._found

    def _complete(self) -> None:
        found = {}
        for one, other in combinations(self._tasks, 2):
            by_index = one.documents == other.documents != ""
            names = (one.doc_id, other.doc_id) if by_index else (one.prompts, other.prompts)
            mine, theirs = self._shared(*names)
            if len(mine):
                found[one.task, other.task] = _correlation(one.influences, other.influences, mine, theirs)
        if self._line is not None and found:
            self._found[self._line] = found
        self._tasks = []

    def _shared(self, first: NDArray[Any], second: NDArray[Any]) -> tuple[Ints, Ints]:
        key = _digest(first), _digest(second)
        if key not in self._common:
            _, mine, theirs = np.intersect1d(first, second, return_indices=True)
            self._common[key] = mine, theirs
        return self._common[key]


def _digest(names: NDArray[Any]) -> bytes:
    return hashlib.sha256(names.tobytes()).digest()


def _correlation(first: Floats, second: Floats, mine: Ints, theirs: Ints) -> float:
    """Return the correlation of two sums of influences.

    Args:
        first: Influences of one task, shape (its items,).
        second: Influences of the other task, shape (its items,).
        mine: Indices in `first` of the shared items, shape (shared items,).
        theirs: Indices in `second` of the same items.
    """
    spread = sqrt(float(first @ first) * float(second @ second))
    if not spread:
        return len(mine) / sqrt(len(first) * len(second))
    return float(first[mine] @ second[theirs]) / spread


def correlation_of(correlations: Correlations, first: str, second: str) -> float:
    """Return the correlation of two tasks; 0 if they have no items in common."""
    return correlations.get((first, second), correlations.get((second, first), 0.0))
