"""All requests of an evaluation, and the address under which each task's responses are stored.

Worker and merge both use it, so that they cannot differ. lm-eval is imported only for real tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpcq.core.work_records import EvaluateWork, Task
from hpcq.evaluate.requests import Request, synthetic_requests

if TYPE_CHECKING:
    from hpcq.evaluate.lm_eval_tasks import BuiltTask


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestSet:
    """The requests of a list of tasks; they do not depend on the model.

    Attributes:
        requests: All requests.
        tasks: The task by the name in its requests' keys; a group of tasks has several names.
        built_tasks: lm-eval's tasks, for scoring; empty for synthetic requests.
    """

    requests: Sequence[Request]
    tasks: Mapping[str, Task]
    built_tasks: Sequence[BuiltTask] = field(default=())

    def addresses(self, work: EvaluateWork) -> dict[str, str]:
        """Return the content address of `work`'s responses to each task."""
        return {name: work.task_address(task) for name, task in self.tasks.items()}


def build_request_set(tasks: Sequence[Task], *, is_synthetic: bool) -> RequestSet:
    """Build all requests of `tasks`. Synthetic requests need neither lm-eval nor data.

    Raises:
        UserInputError: a task is unknown, or its definition excludes a setting.
        SetupError: a task's data are not available.
        WorkerError: lm-eval cannot make a task's requests.
    """
    if is_synthetic:
        return RequestSet(requests=synthetic_requests(tasks), tasks={task.name: task for task in tasks})
    from hpcq.evaluate.lm_eval_tasks import build_tasks

    built = build_tasks(tasks)
    return RequestSet(
        requests=[request for one in built for request in one.requests()],
        tasks={name: one.task for one in built for name in one.leaves},
        built_tasks=built,
    )
