"""lm-eval's own tasks (0.4.13): its prompts, metrics and versions; only the place of the data may differ.

Knows lm-eval's TaskManager and the catalog's folders. Must not know models, back ends, responses or the store.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind

from hpcq.catalog.tasks import find_task
from hpcq.core.cache import cache_folder
from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkFailed
from hpcq.core.work import Task
from hpcq.evaluate.requests import GENERATE, Request, requests_of

_DEFINITIONS = Path(lm_eval.tasks.__file__).parent

# It warns of custom data sets, which is how local documents are handed to it.
logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltTask:
    """One task of a work, ready to ask and to score.

    leaves: lm-eval's Task objects by name, several where the task is a group; their Instances are built, all of them,
    once. groups: lm-eval's Group objects by name, empty where the task is no group.
    """

    task: Task
    leaves: Mapping[str, Any]
    groups: Mapping[str, Any]

    @property
    def versions(self) -> dict[str, str]:
        """The version of each leaf's definition."""
        return {name: str(leaf.VERSION) for name, leaf in self.leaves.items()}

    def requests(self) -> list[Request]:
        """Every request, leaf by leaf, in lm-eval's order."""
        versions = self.versions
        named = self.leaves.items()
        return [request for name, leaf in named for request in requests_of(leaf.instances, versions[name])]


def build_tasks(tasks: Sequence[Task]) -> list[BuiltTask]:
    """Make every task, with all of its requests.

    Raises:
        UserInputError: an unknown task, or a setting that its definition excludes.
        SetupError: its data cannot be had.
        WorkFailed: lm-eval cannot make its requests, or two tasks hold the same leaf.
    """
    # IFEval's definition looks for NLTK's data when it is imported, and would fetch them.
    os.environ.setdefault("NLTK_DATA", str(cache_folder() / "nltk_data"))
    # What datasets keeps of processed documents would bring one node's shuffle to some nodes and not to others.
    datasets.disable_caching()
    built = [_build(task) for task in tasks]
    names = [name for one in built for name in one.leaves]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WorkFailed(f"tasks: {', '.join(twice)} would be asked twice: name a group or its members, not both.")
    return built


def _build(task: Task) -> BuiltTask:
    facts = find_task(task.name)
    if facts is None:
        raise UserInputError(
            f"tasks: the catalog has no task {task.name!r}; a row there tells where lm-eval defines it."
        )
    # Some definitions (GPQA's) shuffle choices by Python's own generator: every worker must shuffle alike.
    random.seed(task.fewshot_seed)
    # Indexing all of lm-eval's definitions takes a minute; the folder of one takes a moment.
    manager = lm_eval.tasks.TaskManager(include_path=str(_DEFINITIONS / facts.folder), include_defaults=False)
    entry = manager.task_index[task.name]
    overrides = _local_data(task, is_leaf=entry.kind in (Kind.TASK, Kind.PY_TASK))
    try:
        # TaskManager.load takes overrides for definitions of one's own only; its factory takes them for any.
        made = TaskFactory().build(entry, overrides=overrides, registry=manager.task_index)
    except (OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        place = task.data_path or "where lm-eval's definition says"
        raise SetupError(
            f"{task.name}: its documents cannot be had from {place}: {_first_line(error)}."
            f" Stage them with `hpcq stage`, or name a folder of <split>.jsonl files as tasks.data."
        ) from error
    loaded = manager.load(made if isinstance(made, list) else [made])
    for name, leaf in loaded["tasks"].items():
        _configure(name, leaf, task)
        _build_requests(name, leaf, task)
    return BuiltTask(task=task, leaves=loaded["tasks"], groups=loaded["groups"])


def _local_data(task: Task, *, is_leaf: bool) -> dict[str, Any]:
    """What to change in a definition so that it reads the documents in `task.data_path`; nothing where that is None."""
    if task.data_path is None:
        return {}
    folder = Path(task.data_path)
    if not is_leaf:
        raise UserInputError(f"tasks.data: {task.name} is a group of tasks, which one folder ({folder}) cannot serve.")
    if task.data_digest not in (None, digest_of_items(folder)):
        raise SetupError(
            f"{folder}: the documents of {task.name} are not those that the plan was made with:"
            " submit the manifest again to plan with what is there."
        )
    # Not the loader that datasets has for JSON lines: it keeps a cache, under a lock, in the home folder that all jobs
    # share, and it takes strings that look like dates for dates (datasets 5.2).
    return {"custom_dataset": lambda **_: _documents(folder), "dataset_name": None, "dataset_kwargs": None}


def _documents(folder: Path) -> datasets.DatasetDict:
    """Every `<split>.jsonl` of `folder`, in memory."""
    splits = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
        columns = dict.fromkeys(name for row in rows for name in row)
        splits[path.stem] = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})
    if not splits:
        raise FileNotFoundError(f"{folder} has no .jsonl file")
    return datasets.DatasetDict(splits)


def _configure(name: str, leaf: Any, task: Task) -> None:
    """Apply what the manifest overrides, as lm-eval's command line does; refuse what it would pass over in silence."""
    if getattr(leaf, "UNSAFE_CODE", False):
        raise UserInputError(f"tasks: {name} runs code that a model wrote; hpcq does not do that. Leave it out.")
    defined = leaf.get_config("num_fewshot")
    if task.num_fewshot not in (None, 0) and defined == 0:
        raise UserInputError(
            f"tasks.options.{task.name}.num_fewshot: {task.num_fewshot} is not possible:"
            f" the definition of {name} fixes 0. Leave it out."
        )
    if task.num_fewshot is not None or defined is None:
        leaf.set_config(key="num_fewshot", value=task.num_fewshot or 0)
    if task.max_gen_toks is not None and leaf.OUTPUT_TYPE == GENERATE:
        leaf.set_config(key="generation_kwargs", value={"max_gen_toks": task.max_gen_toks}, update=True)


def _build_requests(name: str, leaf: Any, task: Task) -> None:
    """Build the leaf's Instances, and keep lm-eval from processing documents or building Instances again.

    It does both when it scores. Definitions that shuffle choices would shuffle them anew, and drawing few-shot examples
    moves the leaf's generator: other questions than those that were answered.
    """
    documents = leaf.eval_docs
    setattr(leaf, "test_docs" if leaf.has_test_docs() else "validation_docs", lambda: documents)
    leaf.set_fewshot_seed(seed=task.fewshot_seed)
    try:
        leaf.build_all_requests(limit=task.limit)
    except (ValueError, AssertionError) as error:
        raise WorkFailed(f"{name}: lm-eval cannot make its requests: {_first_line(error)}.") from error
    leaf.build_all_requests = lambda **_: None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
