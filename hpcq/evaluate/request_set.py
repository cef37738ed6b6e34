"""All requests of an evaluation, and the address under which each task's responses are stored.

Worker and merge both use it, so that they cannot differ. lm-eval is imported only for real tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import EvaluateWork, Task
from hpcq.evaluate.panel_requests import panel_requests
from hpcq.evaluate.requests import Request, synthetic_requests

if TYPE_CHECKING:
    from hpcq.evaluate.chat_templates import ChatTemplate
    from hpcq.evaluate.lm_eval_tasks import BuiltTask


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestSet:
    """The requests of a list of tasks. They depend on the model only by its chat template, if a task applies it.

    Attributes:
        requests: All requests.
        tasks: The task by the name in its requests' keys; a group of tasks has several names.
        built_tasks: lm-eval's tasks, for scoring; empty for synthetic requests.
        chat: The checkpoint's chat template; None: no task applies it.
    """

    requests: Sequence[Request]
    tasks: Mapping[str, Task]
    built_tasks: Sequence[BuiltTask] = field(default=())
    chat: ChatTemplate | None = None

    def addresses(self, work: EvaluateWork) -> dict[str, str]:
        """Return the content address of `work`'s responses to each task."""
        return {name: work.task_address(task) for name, task in self.tasks.items()}


def build_request_set(tasks: Sequence[Task], *, is_synthetic: bool, chat: ChatTemplate | None = None) -> RequestSet:
    """Build all requests of `tasks`. Synthetic requests need neither lm-eval nor data.

    Args:
        tasks: The tasks.
        is_synthetic: Whether the synthetic backend answers them.
        chat: The checkpoint's chat template; None: no task applies it.

    Raises:
        UserInputError: a task is unknown, or its definition excludes a setting.
        SetupError: a task's data are not available.
        WorkerError: lm-eval cannot make a task's requests.
    """
    benchmarks = tuple(task for task in tasks if task.panel is None)
    found = _benchmark_requests(benchmarks, is_synthetic=is_synthetic, chat=chat)
    return add_panels(found, tasks, is_synthetic=is_synthetic)


def _benchmark_requests(tasks: Sequence[Task], *, is_synthetic: bool, chat: ChatTemplate | None) -> RequestSet:
    if is_synthetic:
        return RequestSet(requests=synthetic_requests(tasks), tasks={task.name: task for task in tasks})
    from hpcq.evaluate.lm_eval_tasks import build_tasks

    built = build_tasks(tasks, chat)
    return RequestSet(
        requests=[request for one in built for request in one.requests()],
        tasks={name: one.task for one in built for name in one.leaves},
        built_tasks=built,
        chat=chat,
    )


def add_panels(benchmarks: RequestSet, tasks: Sequence[Task], *, is_synthetic: bool) -> RequestSet:
    """Return the request set with the requests of the fidelity panels among `tasks`.

    Raises:
        UserInputError: the text is malformed or too short.
        SetupError: the text is missing or has changed.
    """
    panels = [task for task in tasks if task.panel is not None]
    if not panels:
        return benchmarks
    added = [request for task in panels for request in panel_requests(task, is_synthetic=is_synthetic)]
    return replace(
        benchmarks,
        requests=[*benchmarks.requests, *added],
        tasks={**benchmarks.tasks, **{task.name: task for task in panels}},
    )
