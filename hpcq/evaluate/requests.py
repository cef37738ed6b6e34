"""Requests: what is asked of a back end, and the full list of them that a task makes.

Knows lm-eval's Instances by their fields alone, and imports nothing of it. Must not know pieces, shards or responses.

Always the full list: lm-eval draws the few-shot examples of most tasks from one random generator that runs over the
documents in order, so a prompt depends on all documents before it (lm-eval 0.4.13). A slice is taken afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hpcq.catalog.tasks import find_task, rehearsed_size
from hpcq.core.work import Task
from hpcq.store import RequestKey, digest_of_arguments

GENERATE = "generate_until"
LOGLIKELIHOOD = "loglikelihood"
LOGLIKELIHOOD_ROLLING = "loglikelihood_rolling"

REHEARSAL_VERSION = "rehearsal"


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One question. kind: lm-eval's name for it. instance: lm-eval's own object, None in a rehearsal."""

    key: RequestKey
    kind: str
    arguments: tuple[Any, ...]
    instance: Any = None

    @property
    def length(self) -> int:
        """Characters of its texts: enough to tell long from short, and needs no tokenizer."""
        return sum(len(argument) for argument in self.arguments if isinstance(argument, str))

    @property
    def generation(self) -> dict[str, Any]:
        """How to generate; empty for log-likelihoods."""
        return self.arguments[1] if self.kind == GENERATE else {}


def requests_of(instances: Iterable[Any], task_version: str) -> Iterator[Request]:
    """The requests of one task's Instances, in their order, one for each time that an Instance is to be asked."""
    for instance in instances:
        arguments = tuple(instance.args)
        digest = digest_of_arguments(instance.request_type, arguments)
        for repeat in range(instance.repeats):
            yield Request(
                key=RequestKey(instance.task_name, task_version, instance.doc_id, instance.idx, repeat, digest),
                kind=instance.request_type,
                arguments=arguments,
                instance=instance,
            )


def rehearsed_requests(tasks: Sequence[Task]) -> list[Request]:
    """Requests without any data, as many of each kind as the catalog expects of the real tasks."""
    return [request for task in tasks for request in _rehearsed(task)]


def _rehearsed(task: Task) -> Iterator[Request]:
    facts = find_task(task.name)
    kind = facts.output if facts else LOGLIKELIHOOD
    documents, requests = rehearsed_size(task.name, task.limit)
    for document in range(documents):
        for index in range(requests):
            text = f"{task.name} {document} {index}"
            arguments = (text, {"max_gen_toks": task.max_gen_toks or 0} if kind == GENERATE else "")
            digest = digest_of_arguments(kind, arguments)
            key = RequestKey(task.name, REHEARSAL_VERSION, document, index, 0, digest)
            yield Request(key=key, kind=kind, arguments=arguments)
