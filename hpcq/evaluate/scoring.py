"""Scores from stored responses, by lm-eval's own evaluator: its metrics, filters, standard errors and groups."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lm_eval.evaluator
from lm_eval.api.model import LM

from hpcq.catalog.main_metrics import main_metric, result_name
from hpcq.catalog.tasks import find_task
from hpcq.core.errors import RunIncompleteError
from hpcq.evaluate.item_scores import ScoredTasks, group_shares, task_items
from hpcq.evaluate.lm_eval_tasks import BuiltTask
from hpcq.evaluate.repeats import group_scores, repeat_scores
from hpcq.evaluate.requests import requests_of
from hpcq.store import ItemTables, RequestKey, Response, Score

_NO_FILTER = "none"
"""lm-eval's name of the filter of definitions without one."""


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
) -> ScoredTasks:
    """Return the scores of all tasks, and groups of tasks, whose requests are all answered, and of their items.

    Args:
        built: The tasks.
        responses: Their responses.
        withheld: Names of tasks with invalid responses: they, and the groups that contain them, have no score.
    """
    parts = [_score_task(task, responses, withheld) for task in built]
    return ScoredTasks(
        scores=[one for part in parts for one in part.scores],
        items=ItemTables(
            tasks=[one for part in parts for one in part.items.tasks],
            groups=[one for part in parts for one in part.items.groups],
        ),
    )


def main_metrics(built: Sequence[BuiltTask]) -> dict[str, dict[str, Any]]:
    """Return metric, filter and direction of the main score of each task that the catalog does not have."""
    return {one.task.name: _main_metric(one) for one in built if find_task(one.task.name) is None}


def _main_metric(task: BuiltTask) -> dict[str, Any]:
    """Return metric, filter and direction by the rule of `hpcq.catalog.main_metrics`.

    Those of a group with scores are in its definition. Otherwise they are those of its first task with metrics.
    """
    leaves = list(task.leaves.values())
    group = task.groups.get(task.task.name)
    of_leaves = [leaf for leaf in leaves if leaf.higher_is_better()]
    directions = {name: higher for leaf in reversed(of_leaves) for name, higher in leaf.higher_is_better().items()}
    aggregated = {one.metric: one for one in group.aggregate_metric_list or ()} if group else {}
    metric = main_metric(list(aggregated or directions))
    owner = next((leaf for leaf in of_leaves if metric in leaf.higher_is_better()), leaves[0])
    of_owner = [str(one["name"]) for one in owner.get_config("filter_list") or ()]
    filters = (aggregated[metric].filter_list if metric in aggregated else None) or of_owner or [_NO_FILTER]
    higher = directions.get(metric, True)
    listed = owner.get_config("metric_list") or ()
    settings: dict[str, Any] = next((one for one in listed if getattr(one.get("metric"), "__name__", "") == metric), {})
    metric = result_name(metric, settings)
    return {"metric": metric, "filter": filters[0], "lower_is_better": not higher}


def _score_task(task: BuiltTask, responses: Mapping[RequestKey, Response], withheld: Collection[str]) -> ScoredTasks:
    incomplete = {request.key.task for request in task.requests() if request.key not in responses} | {*withheld}
    leaves = {name: leaf for name, leaf in task.leaves.items() if name not in incomplete}
    groups = {name: task.groups[name] for name, members in task.members.items() if not incomplete & members}
    if not leaves:
        return ScoredTasks()
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
        confirm_run_unsafe_code=task.task.runs_code,
        log_samples=True,
    )
    scores = [one for name, values in results["results"].items() for one in _row_scores(name, values)]
    return _with_repeats(leaves, ScoredTasks(scores=scores, items=_items(task, scores, results["samples"])))


def _with_repeats(leaves: Mapping[str, Any], scored: ScoredTasks) -> ScoredTasks:
    """Add avg@n and pass@k of tasks with several texts per prompt, and of their groups."""
    tables = {table.task: table for table in scored.items.tasks}
    own = {
        name: repeat_scores(name, leaf, tables[name].values)
        for name, leaf in leaves.items()
        if name in tables and any(len(instance.resps) > 1 for instance in leaf.instances)
    }
    if not own:
        return scored
    for name, found in own.items():
        tables[name] = replace(tables[name], values={**tables[name].values, **found.values})
    sizes = {name: len(table.doc_id) for name, table in tables.items()}
    groups = list(group_scores(scored.items.groups, own, sizes))
    return ScoredTasks(
        scores=[*scored.scores, *(one for found in own.values() for one in found.scores), *(one for one, _ in groups)],
        items=ItemTables(tasks=list(tables.values()), groups=[*scored.items.groups, *(shares for _, shares in groups)]),
    )


def _items(task: BuiltTask, scores: Sequence[Score], samples: Mapping[str, Any]) -> ItemTables:
    first: dict[str, dict[int, RequestKey]] = {name: {} for name in samples}
    for request in task.requests():
        if request.key.task in first:
            first[request.key.task].setdefault(request.key.doc_id, request.key)
    tables = [
        task_items(
            name, own, [one for one in scores if one.task == name], first[name], definition=task.leaves.get(name)
        )
        for name, own in samples.items()
    ]
    tasks = [table for table in tables if table is not None]
    return ItemTables(tasks=tasks, groups=list(group_shares(task.members, scores, tasks)))


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
