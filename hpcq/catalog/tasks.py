"""Benchmarks and suites as data: where lm-eval defines them, how large they are, which of their numbers a table shows.

Knows lm-eval's names and files, and never imports it. The rows and their sources stand in tasks.toml.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows

_REHEARSED_DOCUMENTS = 100
_REHEARSED_REQUESTS = 4


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What the prompts of a benchmark are made of, in tokens, on average.

    fixed: what stands before all else, the same for every item of a data set. example: one few-shot example.
    are_examples_drawn: anew for each item; else its data set's first ones stand before every item. question: what an
    item's requests share besides. choice: what follows in each of them, without its last token, which no model reads.
    """

    fixed: float = 0.0
    example: float = 0.0
    are_examples_drawn: bool = False
    question: float
    choice: float


@dataclass(frozen=True, kw_only=True)
class GenerationFacts:
    """What the prompts and answers of a benchmark that generates are made of, in tokens, on average.

    fixed, example, question: as of `TokenFacts`. answer: the text that a model writes.
    """

    fixed: float = 0.0
    example: float = 0.0
    question: float
    answer: float

    def prompt(self, shots: int) -> float:
        """Tokens of a prompt with so many few-shot examples."""
        return self.fixed + shots * self.example + self.question


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """What is known of a benchmark before lm-eval is imported.

    folder: where its YAML lies, under lm_eval/tasks. metric, filter: the number that tables show. items: documents in
    the full set. num_fewshot: what its definition says. requests_per_item: on average. output: loglikelihood or
    generate_until. max_gen_toks: generated tokens at most, as its definition says (0: it generates nothing).
    is_group: a group of several data sets, `data_sets` of them. is_runnable: False for a benchmark that hpcq knows by
    name only. tokens: None where nobody has counted them, and where it generates. generation: where it does.
    """

    name: str
    folder: str
    metric: str
    filter: str = "none"
    items: int
    num_fewshot: int
    requests_per_item: float
    output: str
    max_gen_toks: int = 0
    is_group: bool = False
    data_sets: int = 1
    is_runnable: bool = True
    tokens: TokenFacts | None = None
    generation: GenerationFacts | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named set of tasks, each with its number of few-shot examples (None: as the task's definition says)."""

    name: str
    tasks: tuple[tuple[str, int | None], ...]


def task_names() -> tuple[str, ...]:
    """Every task that the catalog knows."""
    return tuple(_tasks())


def find_task(name: str) -> TaskFacts | None:
    """The task of that name; None: unknown."""
    return _tasks().get(name)


def rehearsed_size(name: str, limit: int | None) -> tuple[int, int]:
    """Documents of a task in a rehearsal, and requests of each."""
    facts = find_task(name)
    if facts is None:
        return limit or _REHEARSED_DOCUMENTS, _REHEARSED_REQUESTS
    return min(limit or _REHEARSED_DOCUMENTS, facts.items), max(1, round(facts.requests_per_item))


def suite_names() -> tuple[str, ...]:
    """Every suite that the catalog knows."""
    return tuple(_suites())


def find_suite(name: str) -> Suite | None:
    """The suite of that name; None: unknown."""
    return _suites().get(name)


@lru_cache
def _tasks() -> dict[str, TaskFacts]:
    return {name: _task(name, row) for name, row in catalog_rows("tasks.toml")["tasks"].items()}


def _task(name: str, row: dict[str, Any]) -> TaskFacts:
    tokens = TokenFacts(**row["tokens"]) if "tokens" in row else None
    generation = GenerationFacts(**row["generation"]) if "generation" in row else None
    return TaskFacts(name=name, **{**row, "tokens": tokens, "generation": generation})


@lru_cache
def _suites() -> dict[str, Suite]:
    return {
        name: Suite(name=name, tasks=tuple((row["task"], row.get("num_fewshot")) for row in rows))
        for name, rows in catalog_rows("tasks.toml")["suites"].items()
    }
