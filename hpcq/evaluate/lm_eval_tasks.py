"""lm-eval's own tasks (0.4.13), with its prompts, metrics and versions; only the data's location differs."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import jinja2
import lm_eval.tasks
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind

from hpcq.catalog.packages import find_packaged_dataset, nltk_data_folder
from hpcq.catalog.tasks import find_task
from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.mirror import is_mirror_revision
from hpcq.core.sentences import first_line
from hpcq.core.work_records import Task
from hpcq.evaluate.hub_datasets import DatasetStager, prepared_datasets
from hpcq.evaluate.json_documents import read_json_documents
from hpcq.evaluate.requests import GENERATE, Request, requests_of

_DEFINITIONS = Path(lm_eval.tasks.__file__).parent
_NLTK_RESOURCE = "tokenizers/punkt_tab"

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

    @property
    def members(self) -> dict[str, frozenset[str]]:
        """The names of the leaves of each group."""
        return {
            name: frozenset(leaf.task_name for leaf in group.get_all_tasks()) for name, group in self.groups.items()
        }

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
    built = [_build(task) for task in tasks]
    names = [name for one in built for name in one.leaves]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise WorkerError(f"tasks: {', '.join(duplicates)} would run twice: name a group or its members, not both.")
    return built


def _build(task: Task) -> BuiltTask:
    loaded = load_definition(task)
    for name, leaf in loaded["tasks"].items():
        _configure(name, leaf, task)
        _build_requests(name, leaf, task)
    return BuiltTask(task=task, leaves=loaded["tasks"], groups=loaded["groups"])


def load_definition(task: Task, *, stager: DatasetStager | None = None) -> dict[str, Any]:
    """Return lm-eval's objects for a task, without requests: its leaves (`tasks`) and `groups`, by name.

    Args:
        task: The task.
        stager: Prepares data sets of the hub that are missing in `task.cache`; None on nodes.

    Raises:
        UserInputError: the task is unknown, or is a group with `data_path`.
        SetupError: the task's data are not available.
        WorkerError: the first document does not fit the task.
    """
    facts = find_task(task.name)
    if facts is None:
        raise UserInputError(
            f"tasks: the catalog has no task {task.name!r}. Add a row that names the folder of its lm-eval definition."
        )
    # datasets caches processed documents: the shuffle of one node would be used on some nodes and not on others.
    datasets.disable_caching()
    _check_nltk_data(task)
    # Some definitions (GPQA's) shuffle choices with Python's global generator: every worker must shuffle equally.
    random.seed(task.fewshot_seed)
    # To index all of lm-eval's definitions takes a minute, to index one folder takes a moment.
    manager = lm_eval.tasks.TaskManager(include_path=str(_DEFINITIONS / facts.folder), include_defaults=False)
    entry = manager.task_index[task.name]
    overrides = _local_data(task, is_leaf=entry.kind in (Kind.TASK, Kind.PY_TASK))
    try:
        with contextlib.nullcontext() if overrides else prepared_datasets(task, stager):
            # TaskManager.load accepts overrides only for the user's own definitions; its factory accepts them for all.
            built = TaskFactory().build(entry, overrides=overrides, registry=manager.task_index)
    except (OSError, LookupError, ImportError, jinja2.UndefinedError, datasets.exceptions.DatasetsError) as error:
        sentence = f"{task.name}: its documents cannot be loaded from {_source(task)}: {_reason(error)}."
        if stager and any(is_mirror_revision(commit) for _, commit in task.data_revisions):
            raise UserInputError(f"{sentence} Correct the files of this data set in data.mirror.") from error
        raise SetupError(
            f"{sentence} Stage them with `hpcq stage`, or set tasks.data to a folder of <split>.jsonl files."
        ) from error
    except (AssertionError, TypeError, ValueError) as error:  # lm-eval makes a prompt of the first document
        raise WorkerError(
            f"{task.name}: lm-eval cannot use the first document in {_source(task)}: {_reason(error)}. Check the items."
        ) from error
    return manager.load(built if isinstance(built, list) else [built])


def _source(task: Task) -> str:
    return task.data_path or ", ".join(f"{repo}@{commit[:12]}" for repo, commit in task.data_revisions)


def _check_nltk_data(task: Task) -> None:
    """Check that IFEval finds NLTK's data: its definition looks for them when it is imported, and downloads them."""
    packaged = find_packaged_dataset(task.name)
    if packaged is None or not packaged.support:
        return
    import nltk

    folder = str(nltk_data_folder())
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)
    try:
        nltk.data.find(_NLTK_RESOURCE)
    except LookupError as error:
        raise SetupError(
            f"{task.name}: NLTK's sentence splitter ({_NLTK_RESOURCE}) is not in {folder}."
            " Run `hpcq stage MANIFEST` on a machine with a network."
        ) from error


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
            " Submit the manifest again to plan with the current ones."
        )
    return {"custom_dataset": lambda **_: _documents(folder), "dataset_name": None, "dataset_kwargs": None}


def _documents(folder: Path) -> datasets.DatasetDict:
    """Load every `<split>.jsonl` of `folder` into memory."""
    files = {path.stem: [path] for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise FileNotFoundError(f"{folder} has no .jsonl file")
    return read_json_documents(files)


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
    except (ValueError, TypeError, LookupError, AssertionError, jinja2.UndefinedError) as error:
        source = f" in {task.data_path}" if task.data_path else ""
        raise WorkerError(
            f"{name}: lm-eval cannot make its requests: {_reason(error)}{_first_invalid(leaf)}."
            f" Check the items{source}."
        ) from error
    leaf.build_all_requests = lambda **_: None


def _first_invalid(leaf: Any) -> str:
    """Return which document lm-eval cannot turn into a prompt with an answer, as the end of a sentence; '': none."""
    for number, document in enumerate(leaf.eval_docs):
        try:
            leaf.doc_to_text(document)
            leaf.doc_to_target(document)
        except (ValueError, TypeError, LookupError, AssertionError, jinja2.UndefinedError):
            return f", in document {number} (counted from 0)"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"they have no split or column {error}"
    if isinstance(error, IndexError):
        return "a split is empty"
    return first_line(error)
