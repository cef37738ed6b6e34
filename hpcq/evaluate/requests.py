"""Requests to a backend, made from the documents of an lm-eval task.

lm-eval's Instances are used through their fields; lm-eval is not imported.

The list is always the full one. lm-eval draws the few-shot examples of most tasks from one random generator that runs
over the documents in order, so a prompt depends on all documents before it (lm-eval 0.4.13). Shards take their part of
the list afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hpcq.catalog.tasks import known_task, synthetic_size
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Task
from hpcq.store import RequestKey, digest_of_arguments

GENERATE = "generate_until"
LOGLIKELIHOOD = "loglikelihood"
LOGLIKELIHOOD_ROLLING = "loglikelihood_rolling"
TOP_LOGPROBS = "top_logprobs"
"""Kind of the fidelity panel's requests (`hpcq.evaluate.panel_requests`), which lm-eval does not have."""

# Stored in the keys of responses, so it keeps the name that the synthetic backend had at first.
SYNTHETIC_VERSION = "rehearsal"


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One request.

    Attributes:
        key: Its key in the store.
        kind: lm-eval's request type, or TOP_LOGPROBS.
        arguments: lm-eval's arguments of that type; of TOP_LOGPROBS: text, tokens to read, number of top tokens.
        instance: lm-eval's Instance; None for a synthetic request and for TOP_LOGPROBS.
        seed: Seed of the task's sampled texts; None: that of the evaluation.
        think_end_token: Text that ends the reasoning of the answer; None: all generated text is the answer.
    """

    key: RequestKey
    kind: str
    arguments: tuple[Any, ...]
    instance: Any = None
    seed: int | None = None
    think_end_token: str | None = None

    @property
    def text_length(self) -> int:
        """Characters of all texts: enough to sort by length, without a tokenizer."""
        return sum(len(argument) for argument in self.arguments if isinstance(argument, str))

    @property
    def generation_kwargs(self) -> dict[str, Any]:
        """lm-eval's generation arguments; empty for log-likelihoods."""
        return self.arguments[1] if self.kind == GENERATE else {}


def requests_of(instances: Iterable[Any], task_version: str, task: Task | None = None) -> Iterator[Request]:
    """Yield the requests of one task's Instances, in order; an Instance with n repeats makes n requests.

    Args:
        instances: The Instances.
        task_version: Version of the task's definition.
        task: The task, whose settings the requests carry; None: only their keys matter.
    """
    seed = task.sampling.seed if task else None
    think_end_token = task.prompt.think_end_token if task else None
    for instance in instances:
        arguments = tuple(instance.args)
        digest = digest_of_arguments(instance.request_type, arguments)
        for repeat in range(instance.repeats):
            yield Request(
                key=RequestKey(instance.task_name, task_version, instance.doc_id, instance.idx, repeat, digest),
                kind=instance.request_type,
                arguments=arguments,
                instance=instance,
                seed=seed,
                think_end_token=think_end_token,
            )


def synthetic_requests(tasks: Sequence[Task]) -> list[Request]:
    """Return requests without any data, as many of each kind as the catalog expects of the real tasks."""
    return [request for task in tasks for request in _synthetic_requests(task)]


def _synthetic_requests(task: Task) -> Iterator[Request]:
    facts = known_task(task.name, task.definitions)
    kind = facts.output_type if facts else LOGLIKELIHOOD
    documents, requests = synthetic_size(task)
    for document in range(documents):
        for index in range(requests):
            text = f"{task.name} {document} {index}"
            arguments = (text, {"max_gen_toks": task.max_gen_toks or 0} if kind == GENERATE else "")
            digest = digest_of_arguments(kind, arguments)
            for repeat in range(task.sampling.repeats or 1):
                key = RequestKey(task.name, SYNTHETIC_VERSION, document, index, repeat, digest)
                yield Request(key=key, kind=kind, arguments=arguments)
