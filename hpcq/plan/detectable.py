"""Smallest differences of scores that the planned numbers of items can show, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from typing import Any

from hpcq.catalog.packages import find_packaged_dataset
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import EvaluateWork, Task
from hpcq.plan.cost.tokens import document_count
from hpcq.plan.units import Plan
from hpcq.report.statistics.detectable import detectable_before

CHANGED_PERCENT = (5.0, 10.0)
"""Assumed shares of the items whose answer a quantization changes from right to wrong, or from wrong to right."""


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """A difference that the items of a task can show.

    Attributes:
        changed_percent: Assumed share of items that change.
        points: Difference of accuracies, in percentage points, that is found with a probability of 80 %.
    """

    changed_percent: float
    points: float


@dataclass(frozen=True, kw_only=True)
class TaskDetectable:
    """Differences that a task can show.

    Attributes:
        task: Name of the task.
        n: Number of items.
        differences: One per assumed share of items that change.
    """

    task: str
    n: int
    differences: tuple[Detectable, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "differences": [asdict(one) for one in self.differences]}


def detectable_differences(plan: Plan) -> Iterator[TaskDetectable]:
    """Yield what each task of the plan can show; tasks with an unknown number of items are left out."""
    tasks = {
        task.name: task
        for unit in plan.units
        if isinstance(unit.work, EvaluateWork) and not unit.work.is_synthetic
        for task in unit.work.tasks
    }
    for name, task in tasks.items():
        n = document_count(task)
        if n and _is_known_data(task):
            found = (Detectable(changed_percent=share, points=_points(n, share)) for share in CHANGED_PERCENT)
            yield TaskDetectable(task=name, n=n, differences=tuple(found))


def items_needed(points: float, changed_percent: float) -> int:
    """Return the number of items that can show a difference of `points`."""
    return ceil((_points(1, changed_percent) / points) ** 2)


def _points(n: int, changed_percent: float) -> float:
    return 100 * detectable_before(n, changed_percent / 100)


def _is_known_data(task: Task) -> bool:
    """Whether the items are those of the hub or of a package: files of the user have any number of items."""
    packaged = find_packaged_dataset(task.name)
    return task.data_path is None or (packaged is not None and task.data_path == str(packaged.staged_path))
