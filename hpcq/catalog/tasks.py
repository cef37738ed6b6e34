"""Tasks of lm-eval and suites of them (tasks.toml): definition, size, token averages, reported metric."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows, with_tuples

_SYNTHETIC_DOCUMENTS = 100
_SYNTHETIC_REQUESTS = 4


@dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """Parts of a log-likelihood task's prompts, in tokens on average.

    Attributes:
        shared_prefix: Beginning of all prompts of a subtask.
        example: One few-shot example.
        are_examples_sampled: Examples are sampled for each document; otherwise those of a subtask are all the same.
        question: Further text that all requests of a document share.
        choice: End of each request, without its last token, which the model does not read.
    """

    shared_prefix: float = 0.0
    example: float = 0.0
    are_examples_sampled: bool = False
    question: float
    choice: float


@dataclass(frozen=True, kw_only=True)
class GenerationTokens:
    """Parts of a generation task's prompts and answers, in tokens on average.

    Attributes:
        shared_prefix: As in `PromptTokens`.
        example: As in `PromptTokens`.
        question: As in `PromptTokens`.
        answer: Text that a model generates.
    """

    shared_prefix: float = 0.0
    example: float = 0.0
    question: float
    answer: float

    def prompt_tokens(self, shots: int) -> float:
        """Return the tokens of a prompt with `shots` few-shot examples."""
        return self.shared_prefix + shots * self.example + self.question


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known about a task without importing lm-eval.

    Attributes:
        name: Name of the task in lm-eval.
        folder: Folder of its YAML files below lm_eval/tasks.
        datasets: Data sets on the hub that its definition reads.
        metric: Metric that tables show.
        filter: Filter of that metric.
        documents: Number of documents of the full evaluated split.
        num_fewshot: Number of few-shot examples in its definition.
        requests_per_document: Mean number of requests per document.
        output_type: "loglikelihood" or "generate_until".
        max_gen_toks: Maximum number of generated tokens in its definition; 0: it does not generate.
        is_group: It is a group of several subtasks.
        num_subtasks: Number of subtasks of a group; 1 otherwise.
        is_runnable: False: hpcq knows the name, but cannot evaluate it.
        tokens: Token averages of a log-likelihood task; None: unknown.
        generation: Token averages of a generation task.
    """

    name: str
    folder: str
    datasets: tuple[str, ...] = ()
    metric: str
    filter: str = "none"
    documents: int
    num_fewshot: int
    requests_per_document: float
    output_type: str
    max_gen_toks: int = 0
    is_group: bool = False
    num_subtasks: int = 1
    is_runnable: bool = True
    tokens: PromptTokens | None = None
    generation: GenerationTokens | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named set of tasks.

    Attributes:
        name: Name of the suite.
        tasks: Task names, each with its number of few-shot examples; None: as in the task's definition.
    """

    name: str
    tasks: tuple[tuple[str, int | None], ...]


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks in the catalog."""
    return tuple(_tasks())


def find_task(name: str) -> TaskInfo | None:
    """Return the task with this name; None: unknown."""
    return _tasks().get(name)


def generates_text(name: str) -> bool:
    """Return whether the models write text in a task; an unknown task may do so."""
    info = find_task(name)
    return info is None or info.output_type != "loglikelihood"


def synthetic_size(name: str, limit: int | None) -> tuple[int, int]:
    """Return the number of documents of a task with the synthetic backend, and of requests per document."""
    info = find_task(name)
    if info is None:
        return limit or _SYNTHETIC_DOCUMENTS, _SYNTHETIC_REQUESTS
    return min(limit or _SYNTHETIC_DOCUMENTS, info.documents), max(1, round(info.requests_per_document))


def suite_names() -> tuple[str, ...]:
    """Return the names of all suites in the catalog."""
    return tuple(_suites())


def find_suite(name: str) -> Suite | None:
    """Return the suite with this name; None: unknown."""
    return _suites().get(name)


@lru_cache
def _tasks() -> dict[str, TaskInfo]:
    return {name: _task(name, row) for name, row in catalog_rows("tasks.toml")["tasks"].items()}


def _task(name: str, row: dict[str, Any]) -> TaskInfo:
    tokens = PromptTokens(**row["tokens"]) if "tokens" in row else None
    generation = GenerationTokens(**row["generation"]) if "generation" in row else None
    return TaskInfo(name=name, **{**with_tuples(row), "tokens": tokens, "generation": generation})


@lru_cache
def _suites() -> dict[str, Suite]:
    return {
        name: Suite(name=name, tasks=tuple((row["task"], row.get("num_fewshot")) for row in rows))
        for name, rows in catalog_rows("tasks.toml")["suites"].items()
    }
