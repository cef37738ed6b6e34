"""Token counts of an evaluation, estimated from the catalog's averages without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hpcq.catalog.packages import find_packaged_dataset
from hpcq.catalog.tasks import PromptTokens, TaskInfo, find_task, task_names
from hpcq.core.work_records import EvaluateWork, Task

LOGLIKELIHOOD = "loglikelihood"


@dataclass(frozen=True, kw_only=True)
class TokenEstimate:
    """Prompt tokens of log-likelihood requests.

    Attributes:
        requested: Tokens of all requests in full, as lm-eval computes them on vLLM.
        computed: Tokens if a prefix that requests share is computed once.
        unknown_tasks: Tasks that are not counted, because the catalog has no token averages of them.
    """

    requested: float = 0.0
    computed: float = 0.0
    unknown_tasks: tuple[str, ...] = ()

    def __add__(self, other: TokenEstimate) -> TokenEstimate:
        return TokenEstimate(
            requested=self.requested + other.requested,
            computed=self.computed + other.computed,
            unknown_tasks=tuple(dict.fromkeys((*self.unknown_tasks, *other.unknown_tasks))),
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Tokens that a whole evaluation of one variant computes.

    Attributes:
        scored_tokens: Prompt tokens of log-likelihood requests, each with its logits.
        scored_length: Mean prompt length of log-likelihood requests.
        prompt_tokens: Prompt tokens of generation requests.
        generated_tokens: Tokens that are generated.
        generation_length: Mean sequence length while generating: the prompt and half of the generated text.
        generations: Number of generation requests.
        requests: Number of requests of both kinds.
        unknown_tasks: Tasks without token averages; they are estimated at the mean of the others.
    """

    scored_tokens: float = 0.0
    scored_length: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    generation_length: float = 0.0
    generations: float = 0.0
    requests: float = 0.0
    unknown_tasks: tuple[str, ...] = ()


def estimate_tokens(work: EvaluateWork) -> TokenEstimate:
    """Estimate the log-likelihood tokens of `work`: for a shard, those of the variant divided by the number of shards.

    Generation requests are not counted. The estimate assumes that prompts fit the model's context length, and that its
    tokenizer makes as many tokens as the one that the catalog's averages were counted with.
    """
    whole = sum((estimate_task_tokens(task) for task in work.tasks), start=TokenEstimate())
    return TokenEstimate(
        requested=whole.requested / work.shard.count,
        computed=(whole.computed if work.shares_prefixes else whole.requested) / work.shard.count,
        unknown_tasks=whole.unknown_tasks,
    )


def estimate_task_tokens(task: Task) -> TokenEstimate:
    """Estimate the log-likelihood tokens of one task; zero for a task that generates."""
    info = find_task(task.name)
    if info is not None and info.output_type != LOGLIKELIHOOD:
        return TokenEstimate()
    if info is None or info.tokens is None:
        return TokenEstimate(unknown_tasks=(task.name,))
    return _task_tokens(info, info.tokens, documents=document_count(task), shots=_shots(info, task))


def _task_tokens(info: TaskInfo, tokens: PromptTokens, *, documents: int, shots: int) -> TokenEstimate:
    """Estimate the tokens of `documents` documents, spread over the task's subtasks.

    requested = requests · (shared_prefix + shots · example + question + choice)
    computed = subtasks · shared_prefix + draws · shots · example + documents · question + requests · choice

    Few-shot examples are sampled for each document, or are the same for all documents of a subtask. Choices of one
    document may share a few tokens with each other; the formula ignores this.
    """
    requests = documents * info.requests_per_document
    draws = documents if tokens.are_examples_sampled else info.num_subtasks
    examples = shots * tokens.example
    return TokenEstimate(
        requested=requests * (tokens.shared_prefix + examples + tokens.question + tokens.choice),
        computed=(
            info.num_subtasks * tokens.shared_prefix
            + draws * examples
            + documents * tokens.question
            + requests * tokens.choice
        ),
    )


def document_count(task: Task) -> int:
    """Return the number of documents that the task evaluates; 0: unknown.

    The task reads the original data set, or the packaged one if its data path is that of the package. A limit applies
    to each subtask.
    """
    info = find_task(task.name)
    if info is None:
        return 0
    packaged = find_packaged_dataset(task.name)
    is_packaged = packaged is not None and task.data_path == str(packaged.staged_path)
    available = packaged.splits[0][1] if packaged is not None and is_packaged else info.documents
    return available if task.limit is None else min(task.limit * info.num_subtasks, available)


def mean_prompt_tokens(task: Task) -> float | None:
    """Return the mean tokens of a prompt with its answer (of text: the longest permitted); None: unknown."""
    info = find_task(task.name)
    if info is None:
        return None
    if info.output_type == LOGLIKELIHOOD and info.tokens is not None:
        tokens = info.tokens
        return tokens.shared_prefix + _shots(info, task) * tokens.example + tokens.question + tokens.choice
    if info.generation is not None:
        return info.generation.prompt_tokens(_shots(info, task)) + (task.max_gen_toks or info.max_gen_toks)
    return None


def estimate_workload(tasks: Sequence[Task], *, shares_prefixes: bool) -> Workload:
    """Estimate what `tasks` compute; without prefix sharing, every request is computed in full."""
    scored = scored_requests = requested = prompts = generated = generations = 0.0
    unknown: list[Task] = []
    for task in tasks:
        info, documents = find_task(task.name), document_count(task)
        if info is None:
            unknown.append(task)
        elif info.output_type == LOGLIKELIHOOD and info.tokens is not None:
            tokens = estimate_task_tokens(task)
            scored += tokens.computed if shares_prefixes else tokens.requested
            requested += tokens.requested
            scored_requests += documents * info.requests_per_document
        elif info.generation is not None:
            requests = documents * info.requests_per_document
            generations += requests
            prompts += requests * info.generation.prompt_tokens(_shots(info, task))
            generated += requests * min(info.generation.answer, task.max_gen_toks or info.max_gen_toks)
        else:
            unknown.append(task)
    for task in unknown:
        info, documents = find_task(task.name), document_count(task)
        requests = documents * (info.requests_per_document if info else 1.0)
        scored_mean, requested_mean = (
            (scored / scored_requests, requested / scored_requests)
            if scored_requests
            else _catalog_means(shares_prefixes)
        )
        scored += requests * scored_mean
        requested += requests * requested_mean
        scored_requests += requests
    return Workload(
        scored_tokens=scored,
        scored_length=requested / scored_requests if scored_requests else 0.0,
        prompt_tokens=prompts,
        generated_tokens=generated,
        generation_length=(prompts + generated / 2) / generations if generations else 0.0,
        generations=generations,
        requests=scored_requests + generations,
        unknown_tasks=tuple(task.name for task in unknown),
    )


def _shots(info: TaskInfo, task: Task) -> int:
    return info.num_fewshot if task.num_fewshot is None else task.num_fewshot


@lru_cache(maxsize=2)
def _catalog_means(shares_prefixes: bool) -> tuple[float, float]:  # noqa: FBT001 (lru_cache stores a keyword apart)
    """Return the mean tokens per request, computed and requested, over all tasks with token averages."""
    computed = requested = requests = 0.0
    for name in task_names():
        info = find_task(name)
        if info is not None and info.output_type == LOGLIKELIHOOD and info.tokens is not None:
            tokens = estimate_task_tokens(Task(name=name))
            computed += tokens.computed if shares_prefixes else tokens.requested
            requested += tokens.requested
            requests += info.documents * info.requests_per_document
    return computed / requests, requested / requests
