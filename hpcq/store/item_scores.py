"""Scores of single items in `results.h5`: what paired statistics are made of.

A score that is a mean over items has a value and a weight per item, with score = sum(values) / sum(weights). Other
scores (BLEU, F1 over all items) have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass

NO_TARGET = -1
_COLUMNS = ("doc_id", "target", "digest")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskItems:
    """Items of one task.

    Attributes:
        task: Name of the task.
        doc_id: Index of each item in the data set, shape (items,).
        target: Index of the right choice of each item, shape (items,); NO_TARGET if there are no choices.
        digest: Digest of each item's first request, shape (items,): equal digests are equal prompts.
        values: By metric and filter: value and weight of each item, shape (items, 2).
    """

    task: str
    doc_id: NDArray[np.int64]
    target: NDArray[np.int64]
    digest: NDArray[np.bytes_]
    values: Mapping[tuple[str, str], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class GroupShares:
    """How a group's score is made of its tasks': `score = sum(share * score of the task)`.

    Attributes:
        group: Name of the group.
        metric: Name of the metric.
        filter: lm-eval's filter.
        shares: Share of each task; their sum is 1.
    """

    group: str
    metric: str
    filter: str
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTables:
    """Items of all tasks of a variant, and the groups of these tasks."""

    tasks: Sequence[TaskItems] = ()
    groups: Sequence[GroupShares] = ()


def write_items(parent: h5py.Group, items: ItemTables, name_of: Mapping[str, str]) -> None:
    """Write the items below `parent`, one HDF5 group per task.

    Args:
        parent: Group of the variant.
        items: The items.
        name_of: Name of each task as one part of an HDF5 path.
    """
    for table in items.tasks:
        group = parent.create_group(name_of[table.task])
        group.attrs["task"] = table.task
        for name in _COLUMNS:
            group.create_dataset(name, data=getattr(table, name), track_times=False, **_filters(table.doc_id))
        metrics = group.create_group("metrics")
        for at, ((metric, filter_), values) in enumerate(sorted(table.values.items())):
            dataset = metrics.create_dataset(str(at), data=values, track_times=False, **_filters(table.doc_id))
            dataset.attrs["metric"], dataset.attrs["filter"] = metric, filter_
    documents = [
        json.dumps({"group": one.group, "metric": one.metric, "filter": one.filter, "shares": dict(one.shares)})
        for one in items.groups
    ]
    parent.attrs["groups"] = json.dumps(documents)


def _filters(rows: NDArray[np.int64]) -> dict[str, object]:
    return {"compression": "gzip", "shuffle": True, "fletcher32": True} if len(rows) else {}


def read_items(parent: h5py.Group) -> ItemTables:
    """Read what `write_items` wrote."""
    tasks = []
    for group in parent.values():
        metrics = group["metrics"].values()
        tasks.append(
            TaskItems(
                task=str(group.attrs["task"]),
                **{name: group[name][...] for name in _COLUMNS},
                values={(str(one.attrs["metric"]), str(one.attrs["filter"])): one[...] for one in metrics},
            )
        )
    documents = [json.loads(document) for document in json.loads(str(parent.attrs["groups"]))]
    return ItemTables(tasks=tasks, groups=[GroupShares(**document) for document in documents])
