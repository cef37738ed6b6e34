"""Scores from stored responses, by lm-eval's own evaluator: its metrics, filters, standard errors and groups."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import lm_eval.evaluator
from lm_eval.api.model import LM

from hpcq.core.errors import RunIncompleteError
from hpcq.evaluate.lm_eval_tasks import BuiltTask
from hpcq.evaluate.requests import requests_of
from hpcq.store import RequestKey, Response, Score


class StoreLM(LM):
    """An lm-eval model that answers only from stored responses."""

    def __init__(self, responses: Mapping[RequestKey, Response], versions: Mapping[str, str]) -> None:
        super().__init__()
        self._responses = responses
        self._versions = versions

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float | None, bool | None]]:
        """Return log-likelihood and greedy flag of each request."""
        return self._all(requests, lambda response: (response.loglikelihood, response.is_greedy))

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float | None]:
        """Return the log-likelihood of each request."""
        return self._all(requests, lambda response: response.loglikelihood)

    def generate_until(self, requests: list[Any]) -> list[str | None]:
        """Return the text of each request."""
        return self._all(requests, lambda response: response.text)

    def _all(self, requests: list[Any], answer: Callable[[Response], Any]) -> list[Any]:
        # lm-eval repeats an Instance in its list once per repeat, one after the other.
        instances = list({id(instance): instance for instance in requests}.values())
        return [
            answer(self._response(request.key))
            for instance in instances
            for request in requests_of([instance], self._versions[instance.task_name])
        ]

    def _response(self, key: RequestKey) -> Response:
        try:
            return self._responses[key]
        except KeyError:
            raise RunIncompleteError(f"There is no response to {key}. A task is scored only when complete.") from None


def score(
    built: Sequence[BuiltTask], responses: Mapping[RequestKey, Response], *, withheld: Collection[str] = ()
) -> list[Score]:
    """Return the scores of all tasks, and groups of tasks, whose requests are all answered.

    Args:
        built: The tasks.
        responses: Their responses.
        withheld: Names of tasks with invalid responses: they, and the groups that contain them, have no score.
    """
    return [one for task in built for one in _task_scores(task, responses, withheld)]


def _task_scores(
    task: BuiltTask, responses: Mapping[RequestKey, Response], withheld: Collection[str]
) -> Iterator[Score]:
    incomplete = {request.key.task for request in task.requests() if request.key not in responses} | {*withheld}
    leaves = {name: leaf for name, leaf in task.leaves.items() if name not in incomplete}
    groups = {name: task.groups[name] for name, members in task.members.items() if not incomplete & members}
    if not leaves:
        return
    for leaf in leaves.values():
        for instance in leaf.instances:
            instance.resps.clear()
            instance.filtered_resps.clear()
    _seed_metrics(task.task.fewshot_seed)
    # One process: lm-eval would bootstrap in one process per core of the node, more than the job has. Its generators
    # are seeded per chunk, so the digits are the same.
    os.environ["DISABLE_MULTIPROC"] = "1"
    results = lm_eval.evaluator.evaluate(
        lm=StoreLM(responses, task.versions),
        task_dict={"tasks": leaves, "groups": groups},
        limit=task.task.limit,
        log_samples=False,
    )
    for name, values in results["results"].items():
        yield from _row_scores(name, values)


def _seed_metrics(seed: int) -> None:
    """Seed the metrics that use random numbers (IFEval, for open instructions and in its language detector)."""
    random.seed(seed)
    if "langdetect" in sys.modules:
        sys.modules["langdetect"].DetectorFactory.seed = seed


def _row_scores(name: str, values: Mapping[str, Any]) -> Iterator[Score]:
    """Yield the scores in one row of lm-eval's results: 'acc,none' with its 'acc_stderr,none', which may be 'N/A'."""
    for label, value in values.items():
        metric, comma, filter_ = label.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_}")
        yield Score(
            task=name,
            metric=metric,
            filter=filter_,
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            n=int(values["sample_len"]),
        )
