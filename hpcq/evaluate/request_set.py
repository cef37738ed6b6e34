"""All that a work asks: its tasks' full request list, and the address under which each task's responses are stored.

Shared by the worker and the merge, so that they cannot differ. Imports lm-eval only where real tasks are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpcq.core.work import EvaluateWork, Task
from hpcq.evaluate.requests import Request, rehearsed_requests

if TYPE_CHECKING:
    from hpcq.evaluate.tasks import BuiltTask


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """The requests that a list of tasks makes, whatever the model. tasks: by the name that stands in the keys.

    built: what scoring needs; empty in a rehearsal.
    """

    requests: Sequence[Request]
    tasks: Mapping[str, Task]
    built: Sequence[BuiltTask] = field(default=())

    def addresses(self, work: EvaluateWork) -> dict[str, str]:
        """The content address of `work`'s responses to each task."""
        return {name: work.task_address(task) for name, task in self.tasks.items()}


def questions_of(tasks: Sequence[Task], *, is_rehearsal: bool) -> Questions:
    """Everything that `tasks` ask. A rehearsal asks made-up requests, for which neither lm-eval nor data are needed.

    Raises:
        UserInputError: an unknown task, or a setting that its definition excludes.
        SetupError: a task's data cannot be had.
        WorkFailed: lm-eval cannot make a task's requests.
    """
    if is_rehearsal:
        return Questions(requests=rehearsed_requests(tasks), tasks={task.name: task for task in tasks})
    from hpcq.evaluate.tasks import build_tasks

    built = build_tasks(tasks)
    return Questions(
        requests=[request for one in built for request in one.requests()],
        tasks={name: one.task for one in built for name in one.leaves},
        built=built,
    )
