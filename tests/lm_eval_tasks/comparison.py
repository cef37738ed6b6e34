"""Comparison of a run with what lm-eval itself gives: request strings by their digests, and all metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.store import digest_of_arguments, read_responses, read_results

KINDS = ("loglikelihood", "generate_until", "loglikelihood_rolling")


@dataclass(kw_only=True)
class Comparison:
    """What was compared.

    Attributes:
        names: Names that a manifest gives: tasks, groups and tags.
        tasks: Single tasks with requests.
        requests: Compared requests.
        metrics: Compared metrics and standard errors, those of groups included.
        differences: A line per difference.
    """

    names: int = 0
    tasks: int = 0
    requests: int = 0
    metrics: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.names} names with {self.tasks} tasks, {self.requests} requests, {self.metrics} metrics:"
            f" {len(self.differences)} differences"
        )

    def add(self, other: Comparison) -> None:
        """Add what `other` compared."""
        self.names += other.names
        self.tasks += other.tasks
        self.requests += other.requests
        self.metrics += other.metrics
        self.differences += other.differences


def compare(results: Path, expected: Mapping[str, Any]) -> Comparison:
    """Compare the variant in `results` with lm-eval's output (`lm_eval_program.evaluate`)."""
    (variant,) = read_results(results).variants
    keys: dict[str, dict[str, dict[int, str]]] = {}
    for key in read_responses(results, variant.variant):
        keys.setdefault(key.task, {}).setdefault(str(key.doc_id), {})[key.request_index] = key.digest
    scores = {(score.task, f"{score.metric},{score.filter}"): score for score in variant.scores}
    found = Comparison(names=len(expected))
    for name, own in expected.items():
        for leaf, documents in own["arguments"].items():
            found.tasks += 1
            found.requests += sum(map(len, documents.values()))
            found.differences += _request_differences(leaf, documents, keys.get(leaf, {}))
        metrics = list(_metrics(own["metrics"]))
        found.metrics += len(metrics)
        found.differences += (f"{name}: {line}" for line in _metric_differences(metrics, scores))
    return found


def _request_differences(
    leaf: str, documents: Mapping[str, list[list[Any]]], keys: Mapping[str, Mapping[int, str]]
) -> Iterator[str]:
    if documents.keys() != keys.keys():
        yield f"{leaf}: documents {sorted(keys)} instead of {sorted(documents)}"
    for document, requests in documents.items():
        for index, arguments in enumerate(requests):
            digests = {digest_of_arguments(kind, tuple(arguments)) for kind in KINDS}
            if keys.get(document, {}).get(index) not in digests:
                yield f"{leaf}, document {document}, request {index}: other arguments than {arguments}"


def _metrics(rows: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str, float]]:
    """Yield task, label and value; a label is 'metric,filter'."""
    for task, row in rows.items():
        yield from ((task, label, value) for label, value in row.items() if label.partition(",")[2])


def _metric_differences(metrics: list[tuple[str, str, float]], scores: Mapping[Any, Any]) -> Iterator[str]:
    for task, label, value in metrics:
        metric, _, filter_ = label.partition(",")
        is_error = metric.endswith("_stderr")
        found = scores.get((task, f"{metric.removesuffix('_stderr')},{filter_}"))
        ours = None if found is None else found.stderr if is_error else found.value
        if ours is None and math.isnan(value):
            continue
        if ours is None or ours != value:
            yield f"{task} {label}: {ours} instead of {value}"
