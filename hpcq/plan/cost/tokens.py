"""Token counts of an evaluation, estimated from the catalog's averages without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from hpcq.catalog.packages import find_packaged_dataset
from hpcq.catalog.tasks import PromptTokens, TaskInfo, find_task, known_task, task_names
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import EvaluateWork, Task
from hpcq.plan.cost.staged_size import size_estimate

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
        panel_positions: Positions of the fidelity panel's windows.
        unknown_tasks: Tasks without token averages; they are estimated at the mean of the others.
        counted_tasks: Tasks without a row in the catalog, estimated from the characters counted when they were staged.
        assumed_tasks: The same, not staged yet: their number of items is assumed.
    """

    scored_tokens: float = 0.0
    scored_length: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    generation_length: float = 0.0
    generations: float = 0.0
    requests: float = 0.0
    panel_positions: float = 0.0
    unknown_tasks: tuple[str, ...] = ()
    counted_tasks: tuple[str, ...] = ()
    assumed_tasks: tuple[str, ...] = ()


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
    """Estimate the log-likelihood tokens of one task; zero for a task that generates. Those of a panel are exact."""
    if task.panel is not None:
        return TokenEstimate(requested=task.panel.tokens, computed=task.panel.tokens)
    info = known_task(task.name, task.definitions)
    if info is not None and info.generates_text:
        return TokenEstimate()
    if info is not None and not info.documents and task.size:
        counted = size_estimate(task, info)
        return TokenEstimate(requested=counted.requested, computed=counted.computed)
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
    info = known_task(task.name, task.definitions)
    if info is None or not info.documents:
        return _counted_documents(task, info.num_subtasks if info else 1)
    packaged = find_packaged_dataset(task.name)
    is_packaged = packaged is not None and task.data_path == str(packaged.staged_path)
    available = packaged.splits[0][1] if packaged is not None and is_packaged else info.documents
    return task.selected(available, info.num_subtasks)


def _counted_documents(task: Task, subtasks: int) -> int:
    """Return the documents that were counted at staging, as far as a limit on each subtask permits; 0: not counted."""
    available = task.size.documents if task.size else 0
    return task.selected(available, subtasks)


def mean_prompt_tokens(task: Task) -> float | None:
    """Return the mean tokens of a prompt with its answer (of text: the longest permitted); None: unknown."""
    info = known_task(task.name, task.definitions)
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
    panels = [task.panel for task in tasks if task.panel]
    sized: list[Task] = []
    for task in tasks:
        if task.panel:
            continue
        info, documents = known_task(task.name, task.definitions), document_count(task)
        if info is None or not info.documents:
            size = size_estimate(task, info)
            sized.append(task)
            if size.generated:
                generations += size.requests
                prompts += size.requested
                generated += size.generated
            else:
                scored += size.computed if shares_prefixes else size.requested
                requested += size.requested
                scored_requests += size.requests
        elif info.output_type == LOGLIKELIHOOD and info.tokens is not None:
            tokens = estimate_task_tokens(task)
            scored += tokens.computed if shares_prefixes else tokens.requested
            requested += tokens.requested
            scored_requests += documents * info.requests_per_document
        elif info.generation is not None:
            requests = documents * info.requests_per_document * (task.sampling.repeats or 1)
            generations += requests
            prompts += requests * info.generation.prompt_tokens(_shots(info, task))
            generated += requests * min(info.generation.answer, task.max_gen_toks or info.max_gen_toks)
        else:
            unknown.append(task)
    for task in unknown:
        info, documents = known_task(task.name, task.definitions), document_count(task)
        requests = documents * (info.requests_per_document if info else 1.0)
        scored_mean, requested_mean = (
            (scored / scored_requests, requested / scored_requests)
            if scored_requests
            else _catalog_means(shares_prefixes)
        )
        scored += requests * scored_mean
        requested += requests * requested_mean
        scored_requests += requests
    for panel in panels:
        scored += panel.tokens
        requested += panel.tokens
        scored_requests += panel.windows * panel.repeats
    return Workload(
        scored_tokens=scored,
        scored_length=requested / scored_requests if scored_requests else 0.0,
        prompt_tokens=prompts,
        generated_tokens=generated,
        generation_length=(prompts + generated / 2) / generations if generations else 0.0,
        generations=generations,
        requests=scored_requests + generations,
        panel_positions=sum(panel.tokens for panel in panels),
        unknown_tasks=tuple(task.name for task in unknown),
        counted_tasks=tuple(task.name for task in sized if task.size),
        assumed_tasks=tuple(task.name for task in sized if not task.size),
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
