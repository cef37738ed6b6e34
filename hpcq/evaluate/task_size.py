"""Size of a task's requests, for the planner: counted from its first documents when it is staged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval.api.samplers import ContextSampler

from hpcq.core.prompt_settings import LM_EVAL_PROMPT
from hpcq.core.work_records import Task, TaskSize
from hpcq.evaluate.lm_eval_tasks import build_instances, configure_leaf

_SAMPLE = 40
"""Documents per subtask whose requests are built."""


def count_requests(task: Task, leaves: Mapping[str, Any]) -> TaskSize:
    """Return the number of documents, and number and length of requests, estimated from the first documents.

    Args:
        task: The task.
        leaves: lm-eval's Task objects by name, without requests. They get requests: do not use them afterwards.

    Raises:
        UserInputError: The definition excludes a setting of the task.
        WorkerError: lm-eval cannot make the requests.
    """
    documents = requests = characters = shared = 0
    total = 0.0
    # The chat template depends on the model, and adds little. Counting runs no code, so it needs no permission.
    plain = replace(task, prompt=LM_EVAL_PROMPT, runs_code=True)
    for name, leaf in leaves.items():
        configure_leaf(name, leaf, plain)
        count = len(leaf.eval_docs)
        build_instances(name, leaf, plain, limit=min(_SAMPLE, count), chat=None)
        texts: dict[int, list[str]] = {}
        for instance in leaf.instances:
            text = "".join(part for part in instance.args if isinstance(part, str))
            texts.setdefault(instance.doc_id, []).extend([text] * instance.repeats)
        of_leaf = sum(map(len, texts.values()))
        documents += count
        total += of_leaf * count / max(1, len(texts))
        requests += of_leaf
        characters += sum(len(text) for own in texts.values() for text in own)
        shared += sum(_common_length(own) * len(own) for own in texts.values())
    return TaskSize(
        documents=documents,
        requests=round(total),
        characters=characters / max(1, requests),
        shared_characters=shared / max(1, requests),
    )


def count_examples(leaves: Mapping[str, Any]) -> int | None:
    """Return how many few-shot examples the prompts of all leaves can have; None: the definitions do not say.

    lm-eval draws one more where the evaluated document may be among them (`fewshot_context`, 0.4.13).
    """
    counts = []
    for leaf in leaves.values():
        sampler = getattr(leaf, "sampler", None)
        if sampler is not None:
            split = leaf.fewshot_cfg.split
            is_drawn = type(sampler) is ContextSampler
            excludes_item = split == leaf.get_config("test_split") and (split is not None or is_drawn)
            counts.append(len(sampler.fewshot_docs()) - excludes_item)
    return min(counts, default=None)


def _common_length(texts: list[str]) -> int:
    """Return the number of characters with which all texts begin."""
    first, last = min(texts), max(texts)
    return next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
