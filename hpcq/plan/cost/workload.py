"""What an evaluation has to compute, in tokens of prompts and of text: an estimate from the catalog's figures.

Knows the catalog; must not know a GPU, a tokenizer or an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpcq.catalog.tasks import find_task, task_names
from hpcq.core.work import Task
from hpcq.plan.cost.token_estimates import LOGLIKELIHOOD, estimate_of_task, items_of_task


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Tokens of a whole evaluation.

    scored: computed for log-likelihoods, each with its logits. prompts: computed before text is written. written: text.
    scored_length, written_length: of a prompt of each kind, on average. texts: how many are written. requests: of both
    kinds. without: tasks without figures; they are reckoned as the mean of the others is.
    """

    scored: float = 0.0
    scored_length: float = 0.0
    prompts: float = 0.0
    written: float = 0.0
    written_length: float = 0.0
    texts: float = 0.0
    requests: float = 0.0
    without: tuple[str, ...] = ()


def workload_of(tasks: Sequence[Task], *, shares_prefixes: bool) -> Workload:
    """What `tasks` ask; where prefixes are not shared, every request is computed in full."""
    scored = scored_requests = asked = prompts = written = texts = 0.0
    unknown: list[Task] = []
    for task in tasks:
        facts, items = find_task(task.name), items_of_task(task)
        if facts is None:
            unknown.append(task)
        elif facts.output == LOGLIKELIHOOD and facts.tokens is not None:
            tokens = estimate_of_task(task)
            scored += tokens.computed if shares_prefixes else tokens.asked
            asked += tokens.asked
            scored_requests += items * facts.requests_per_item
        elif facts.generation is not None:
            shots = facts.num_fewshot if task.num_fewshot is None else task.num_fewshot
            requests = items * facts.requests_per_item
            texts += requests
            prompts += requests * facts.generation.prompt(shots)
            written += requests * min(facts.generation.answer, task.max_gen_toks or facts.max_gen_toks)
        else:
            unknown.append(task)
    for task in unknown:
        facts, items = find_task(task.name), items_of_task(task)
        requests = items * (facts.requests_per_item if facts else 1.0)
        each_scored, each_asked = (
            (scored / scored_requests, asked / scored_requests) if scored_requests else _usual(shares_prefixes)
        )
        scored += requests * each_scored
        asked += requests * each_asked
        scored_requests += requests
    return Workload(
        scored=scored,
        scored_length=asked / scored_requests if scored_requests else 0.0,
        prompts=prompts,
        written=written,
        written_length=(prompts + written / 2) / texts if texts else 0.0,
        texts=texts,
        requests=scored_requests + texts,
        without=tuple(task.name for task in unknown),
    )


@lru_cache(maxsize=2)
def _usual(shares_prefixes: bool) -> tuple[float, float]:  # noqa: FBT001 (lru_cache and a keyword do not agree)
    """Tokens of a request, computed and asked, of all tasks whose figures are known."""
    computed = asked = requests = 0.0
    for name in task_names():
        facts = find_task(name)
        if facts is not None and facts.output == LOGLIKELIHOOD and facts.tokens is not None:
            tokens = estimate_of_task(Task(name=name))
            computed += tokens.computed if shares_prefixes else tokens.asked
            asked += tokens.asked
            requests += facts.items * facts.requests_per_item
    return computed / requests, asked / requests
