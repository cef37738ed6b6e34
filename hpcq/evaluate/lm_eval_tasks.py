"""lm-eval's own tasks (0.4.13), with its prompts, metrics and versions; only the data's location differs."""

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
from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.paths import cache_folder
from hpcq.core.work_records import Task
from hpcq.evaluate.requests import GENERATE, Request, requests_of

_DEFINITIONS = Path(lm_eval.tasks.__file__).parent

# lm-eval warns about custom data sets, through which it gets local documents.
logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltTask:
    """One task of an evaluation, ready to be answered and scored.

    Attributes:
        task: The task.
        leaves: lm-eval's Task objects by name, several if the task is a group. All their Instances are built, once.
        groups: lm-eval's Group objects by name; empty if the task is not a group.
    """

    task: Task
    leaves: Mapping[str, Any]
    groups: Mapping[str, Any]

    @property
    def versions(self) -> dict[str, str]:
        """The version of each leaf's definition."""
        return {name: str(leaf.VERSION) for name, leaf in self.leaves.items()}

    def requests(self) -> list[Request]:
        """Return all requests, leaf by leaf, in lm-eval's order."""
        versions = self.versions
        leaves = self.leaves.items()
        return [request for name, leaf in leaves for request in requests_of(leaf.instances, versions[name])]


def build_tasks(tasks: Sequence[Task]) -> list[BuiltTask]:
    """Build every task, with all of its requests.

    Raises:
        UserInputError: a task is unknown, or its definition excludes a setting.
        SetupError: a task's data are not available.
        WorkerError: lm-eval cannot make a task's requests, or two tasks have a leaf in common.
    """
    # IFEval's definition looks for NLTK's data when it is imported, and would download them.
    os.environ.setdefault("NLTK_DATA", str(cache_folder() / "nltk_data"))
    # datasets caches processed documents: the shuffle of one node would be used on some nodes and not on others.
    datasets.disable_caching()
    built = [_build(task) for task in tasks]
    names = [name for one in built for name in one.leaves]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise WorkerError(f"tasks: {', '.join(duplicates)} would run twice: name a group or its members, not both.")
    return built


def _build(task: Task) -> BuiltTask:
    facts = find_task(task.name)
    if facts is None:
        raise UserInputError(
            f"tasks: the catalog has no task {task.name!r}. Add a row that names the folder of its lm-eval definition."
        )
    # Some definitions (GPQA's) shuffle choices with Python's global generator: every worker must shuffle equally.
    random.seed(task.fewshot_seed)
    # To index all of lm-eval's definitions takes a minute, to index one folder takes a moment.
    manager = lm_eval.tasks.TaskManager(include_path=str(_DEFINITIONS / facts.folder), include_defaults=False)
    entry = manager.task_index[task.name]
    overrides = _local_data(task, is_leaf=entry.kind in (Kind.TASK, Kind.PY_TASK))
    try:
        # TaskManager.load accepts overrides only for the user's own definitions; its factory accepts them for all.
        built = TaskFactory().build(entry, overrides=overrides, registry=manager.task_index)
    except (OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        source = task.data_path or "the source in lm-eval's definition"
        raise SetupError(
            f"{task.name}: its documents cannot be loaded from {source}: {_first_line(error)}."
            f" Stage them with `hpcq stage`, or set tasks.data to a folder of <split>.jsonl files."
        ) from error
    loaded = manager.load(built if isinstance(built, list) else [built])
    for name, leaf in loaded["tasks"].items():
        _configure(name, leaf, task)
        _build_requests(name, leaf, task)
    return BuiltTask(task=task, leaves=loaded["tasks"], groups=loaded["groups"])


def _local_data(task: Task, *, is_leaf: bool) -> dict[str, Any]:
    """Return the overrides with which a definition reads the documents in `task.data_path`; empty if that is None."""
    if task.data_path is None:
        return {}
    folder = Path(task.data_path)
    if not is_leaf:
        raise UserInputError(
            f"tasks.data: {task.name} is a group of tasks, whose data cannot come from one folder ({folder})."
        )
    if task.data_digest not in (None, digest_of_items(folder)):
        raise SetupError(
            f"{folder}: the documents of {task.name} have changed since the plan was made."
            " Submit the manifest again to plan with the present ones."
        )
    # Not the JSON-lines loader of datasets: it uses a cache, under a lock, in the home folder that all jobs share, and
    # it converts strings that look like dates to dates (datasets 5.2).
    return {"custom_dataset": lambda **_: _documents(folder), "dataset_name": None, "dataset_kwargs": None}


def _documents(folder: Path) -> datasets.DatasetDict:
    """Load every `<split>.jsonl` of `folder` into memory."""
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
    """Apply the manifest's overrides as lm-eval's command line does; reject those that it would ignore silently."""
    if getattr(leaf, "UNSAFE_CODE", False):
        raise UserInputError(
            f"tasks: {name} runs code that a model wrote, which hpcq does not support. Remove the task."
        )
    defined = leaf.get_config("num_fewshot")
    if task.num_fewshot not in (None, 0) and defined == 0:
        raise UserInputError(
            f"tasks.options.{task.name}.num_fewshot: {task.num_fewshot} is not possible:"
            f" the definition of {name} fixes 0. Remove the option."
        )
    if task.num_fewshot is not None or defined is None:
        leaf.set_config(key="num_fewshot", value=task.num_fewshot or 0)
    if task.max_gen_toks is not None and leaf.OUTPUT_TYPE == GENERATE:
        leaf.set_config(key="generation_kwargs", value={"max_gen_toks": task.max_gen_toks}, update=True)


def _build_requests(name: str, leaf: Any, task: Task) -> None:
    """Build the leaf's Instances, and prevent lm-eval from processing documents or building Instances again.

    It does both when it scores: definitions that shuffle choices would shuffle them again, and other few-shot examples
    would be drawn, because the leaf's generator has advanced. The requests would differ from the answered ones.
    """
    documents = leaf.eval_docs
    setattr(leaf, "test_docs" if leaf.has_test_docs() else "validation_docs", lambda: documents)
    leaf.set_fewshot_seed(seed=task.fewshot_seed)
    try:
        leaf.build_all_requests(limit=task.limit)
    except (ValueError, AssertionError) as error:
        raise WorkerError(f"{name}: lm-eval cannot make its requests: {_first_line(error)}.") from error
    leaf.build_all_requests = lambda **_: None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
