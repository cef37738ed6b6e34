"""Scores of single items from lm-eval's samples, if the task's score is their mean."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.store import GroupShares, ItemTables, RequestKey, Score, TaskItems
from hpcq.store.item_scores import NO_TARGET

_TOLERANCE = 1e-9

Metric = tuple[str, str]
"""A metric and lm-eval's filter."""


@dataclass(frozen=True, kw_only=True)
class ScoredTasks:
    """Scores of tasks and groups, and of their single items."""

    scores: Sequence[Score] = ()
    items: ItemTables = field(default_factory=ItemTables)


def task_items(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
    keys: Mapping[int, RequestKey],
    *,
    definition: object = None,
) -> TaskItems | None:
    """Return the items of one task; None if none of its scores is a mean over items.

    Args:
        task: Name of the task.
        samples: lm-eval's samples of the task: one per item and filter.
        scores: Scores of the task. A metric is kept only if its items give its score.
        keys: Key of the first request of each item.
        definition: lm-eval's task.
    """
    by_filter: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_filter[str(sample["filter"])].append(sample)
    wanted = {(score.metric, score.filter): score.value for score in scores}
    first = sorted(next(iter(by_filter.values()), []), key=_document)
    documents = [_document(sample) for sample in first]
    values: dict[Metric, NDArray[np.float64]] = {}
    for (metric, filter_), score in wanted.items():
        own = sorted(by_filter.get(filter_, ()), key=_document)
        cells = [value_and_weight(sample.get(metric)) for sample in own]
        if [_document(sample) for sample in own] != documents or None in cells or not cells:
            continue
        found = np.array(cells, dtype=np.float64)
        if _is_mean(found, score):
            values[metric, filter_] = found
    if not values:
        return None
    return TaskItems(
        task=task,
        doc_id=np.array(documents, dtype=np.int64),
        target=np.array([right_choice(definition, sample) for sample in first], dtype=np.int64),
        digest=np.array([keys[number].digest.encode("ascii") for number in documents], dtype="S32"),
        values=values,
    )


def _document(sample: Mapping[str, Any]) -> int:
    return int(sample["doc_id"])


def value_and_weight(value: object) -> tuple[float, float] | None:
    """Return the value of an item and its weight: a number, or the sum and the length of a list of numbers."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value), 1.0
    if isinstance(value, list) and value and all(isinstance(one, bool | int | float) for one in value):
        return float(sum(value)), float(len(value))
    return None


def _is_mean(cells: NDArray[np.float64], score: float) -> bool:
    total, weight = cells.sum(axis=0)
    return isclose(total / weight, score, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def right_choice(definition: Any, sample: Mapping[str, Any]) -> int:
    """Return the index of an item's right choice; NO_TARGET if there are no choices, or several right ones.

    As `process_results` of lm-eval 0.4.13: tasks whose contexts differ by choice (winogrande) have the index in place
    of the text; a target may be the text of a choice.

    Args:
        definition: lm-eval's task; None or without choices: the target itself is the index.
        sample: lm-eval's sample.
    """
    target = sample["target"]
    if getattr(definition, "OUTPUT_TYPE", None) == "multiple_choice" and hasattr(definition, "doc_to_choice"):
        document = sample["doc"]
        if getattr(definition, "multiple_input", 0):
            target = definition.doc_to_text(document)
        choices = definition.doc_to_choice(document)
        if isinstance(target, str):
            return choices.index(target) if target in choices else NO_TARGET
    return int(target) if isinstance(target, int) and not isinstance(target, bool) else NO_TARGET


def group_shares(
    members: Mapping[str, frozenset[str]], scores: Sequence[Score], items: Sequence[TaskItems]
) -> Iterator[GroupShares]:
    """Yield how the scores of groups are made of those of their tasks: by the numbers of items, or equally.

    Args:
        members: Names of the tasks of each group.
        scores: Scores of tasks and groups.
        items: Items of the tasks. A group whose score neither of the two gives is left out.
    """
    tables = {table.task: table for table in items}
    for score in scores:
        own = [tables.get(name) for name in sorted(members.get(score.task, ()))]
        metric = (score.metric, score.filter)
        present = [table for table in own if table is not None and metric in table.values]
        if not own or len(present) != len(own):
            continue
        means = np.array([table.values[metric][:, 0].sum() / table.values[metric][:, 1].sum() for table in present])
        sizes = np.array([len(table.doc_id) for table in present], dtype=np.float64)
        for weights in (sizes / sizes.sum(), np.full(len(present), 1 / len(present))):
            if isclose(float(weights @ means), score.value, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
                names = (table.task for table in present)
                yield GroupShares(
                    group=score.task,
                    metric=score.metric,
                    filter=score.filter,
                    shares=dict(zip(names, weights.tolist(), strict=True)),
                )
                break
