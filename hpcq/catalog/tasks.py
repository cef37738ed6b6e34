"""Tasks of lm-eval and suites of them: rows of tasks.toml, and entries of the index of lm-eval's tasks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hpcq.catalog.task_index import ENVIRONMENT, definitions_file, find_entry, has_package, index_file
from hpcq.catalog.toml_rows import catalog_rows, with_tuples
from hpcq.core import environments
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Task

_DISTRIBUTIONS = {
    "Levenshtein": "python-Levenshtein", "PIL": "pillow", "bs4": "beautifulsoup4", "cv2": "opencv-python",
    "dateutil": "python-dateutil", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "PyYAML",
}  # fmt: skip
"""Distributions by the names of their modules, where these differ."""
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
        documents: Number of documents of the full evaluated split; 0: unknown, because the catalog has no row.
        num_fewshot: Number of few-shot examples in its definition.
        requests_per_document: Mean number of requests per document.
        output_type: "loglikelihood", "loglikelihood_rolling" or "generate_until".
        max_gen_toks: Maximum number of generated tokens in its definition; 0: it does not generate.
        is_group: It is a group of several subtasks.
        num_subtasks: Number of subtasks of a group; 1 otherwise.
        is_runnable: False: hpcq knows the name, but cannot evaluate it.
        lower_is_better: A lower value of the metric is better.
        members: Names of the tasks that it consists of: its subtasks, or itself; empty: the index does not exist.
        children: Names that replace it, because it has no score: the tasks of a tag, or of a group without metrics.
        definitions: YAML files of it and its members, relative to lm_eval/tasks, or absolute; empty: those in `folder`.
        has_code: The definitions call Python functions.
        runs_code: Its score comes from running code that the model wrote.
        is_shuffled: A definition shuffles choices with Python's random numbers.
        example_splits: Split of the few-shot examples of each member; '': unknown; empty: all unknown.
        excludes_item: Of each member, whether one more example is drawn, because the evaluated item may be among them.
        examples: Items for few-shot examples of a prompt, if a user's definition names their file; None: unknown.
        problem: Why hpcq cannot evaluate it, as a clause; '': it can.
        tokens: Token averages of a log-likelihood task; None: unknown.
        generation: Token averages of a generation task.
    """

    name: str
    folder: str = ""
    datasets: tuple[str, ...] = ()
    metric: str
    filter: str = "none"
    documents: int = 0
    num_fewshot: int
    requests_per_document: float
    output_type: str
    max_gen_toks: int = 0
    is_group: bool = False
    num_subtasks: int = 1
    is_runnable: bool = True
    lower_is_better: bool = False
    members: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()
    has_code: bool = False
    runs_code: bool = False
    is_shuffled: bool = False
    example_splits: tuple[str, ...] = ()
    excludes_item: tuple[bool, ...] = ()
    examples: int | None = None
    problem: str = ""
    tokens: PromptTokens | None = None
    generation: GenerationTokens | None = None

    @property
    def generates_text(self) -> bool:
        """Whether answers are generated texts; of a group, those of at least one task."""
        return self.output_type == "generate_until"


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
    """Return the task with this name in the catalog; None: it has no row."""
    return _tasks().get(name)


def known_task(name: str, definitions: str | None = None) -> TaskInfo | None:
    """Return the task with this name: its row in the catalog, or its entry in an index; None: unknown.

    Args:
        name: The name.
        definitions: Digest of the user's definitions, which are looked up first; None: there are none.
    """
    own = find_entry(definitions_file(definitions), name) if definitions else None
    if own is not None:
        return _indexed(name, own)
    return find_task(name) or indexed_task(name)


def indexed_task(name: str) -> TaskInfo | None:
    """Return the entry of a task in the index of lm-eval's tasks; None: there is none, or no index."""
    entry = find_entry(index_file(), name)
    return _indexed(name, entry) if entry else None


def _indexed(name: str, entry: dict[str, Any]) -> TaskInfo:
    row = with_tuples(entry)
    missing = tuple(one for one in row.pop("missing_packages", ()) if not has_package(one))
    return TaskInfo(name=name, **row | {"problem": row.get("problem") or _missing_packages(missing)})


def _missing_packages(names: tuple[str, ...]) -> str:
    """Return why a task cannot be evaluated whose definition imports these modules; '': there are none."""
    if not names:
        return ""
    noun = "package" if len(names) == 1 else "packages"
    install = " ".join(_DISTRIBUTIONS.get(name, name) for name in names)
    return (
        f"it needs the Python {noun} {', '.join(names)}, which the environment does not have; to install what is"
        f" missing, run `{environments.interpreter(ENVIRONMENT)} -m pip install {install}`, and the same in the"
        " environment of another backend"
    )


def generates_text(name: str, definitions: str | None = None) -> bool:
    """Return whether the models write text in a task; an unknown task may do so."""
    info = known_task(name, definitions)
    return info is None or info.generates_text


def synthetic_size(task: Task) -> tuple[int, int]:
    """Return the number of documents of a task with the synthetic backend, and of requests per document."""
    info = known_task(task.name, task.definitions)
    asked = task.items.count if task.items else task.limit or _SYNTHETIC_DOCUMENTS
    if info is None or not info.documents:
        return asked, _SYNTHETIC_REQUESTS
    return min(asked, info.documents), max(1, round(info.requests_per_document))


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
