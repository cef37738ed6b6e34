"""lm-eval's own tasks (0.4.13), with its prompts, metrics and versions; only the data's location differs."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import jinja2
import lm_eval.tasks
from lm_eval.tasks._factory import TaskFactory

from hpcq.catalog.packages import find_packaged_dataset, nltk_data_folder
from hpcq.core.digests import digest_of_items
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.mirror import is_mirror_revision
from hpcq.core.sentences import first_line
from hpcq.core.work_records import Task
from hpcq.evaluate.chat_templates import ChatTemplate
from hpcq.evaluate.code_execution.code_eval import sandboxed_code_eval
from hpcq.evaluate.definition_index import definition_index, leaf_names
from hpcq.evaluate.hub_datasets import DatasetStager, prepared_datasets
from hpcq.evaluate.json_documents import read_json_documents
from hpcq.evaluate.processed_documents import splits_processed_once
from hpcq.evaluate.requests import Request, requests_of
from hpcq.evaluate.selected_items import select_items
from hpcq.evaluate.task_settings import apply_sampling, prompt_arguments

_NLTK_RESOURCE = "tokenizers/punkt_tab"
_NO_DEFINITIONS = lm_eval.tasks.TaskManager(include_defaults=False)

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
        return [request for name, leaf in leaves for request in requests_of(leaf.instances, versions[name], self.task)]


def build_tasks(tasks: Sequence[Task], chat: ChatTemplate | None = None) -> list[BuiltTask]:
    """Build every task, with all of its requests.

    Args:
        tasks: The tasks.
        chat: The checkpoint's chat template; None: no task applies it.

    Raises:
        UserInputError: a task is unknown, or its definition excludes a setting.
        SetupError: a task's data are not available.
        WorkerError: lm-eval cannot make a task's requests, or two tasks have a leaf in common.
    """
    built = [_build(task, chat) for task in tasks]
    names = [name for one in built for name in one.leaves]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise WorkerError(f"tasks: {', '.join(duplicates)} would run twice: name a group or its members, not both.")
    return built


def _build(task: Task, chat: ChatTemplate | None) -> BuiltTask:
    loaded = load_definition(task)
    for name, leaf in loaded["tasks"].items():
        configure_leaf(name, leaf, task)
    select_items(task, loaded["tasks"])
    for name, leaf in loaded["tasks"].items():
        _build_requests(name, leaf, task, chat)
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
    index = definition_index(task)
    datasets.disable_caching()  # see `hpcq.evaluate.processed_documents`
    leaves = leaf_names(task.name, index)
    for name in leaves:
        _check_nltk_data(name)
    # Some definitions (GPQA's) shuffle choices with Python's global generator: every worker must shuffle equally.
    random.seed(task.fewshot_seed if task.shuffle_seed is None else task.shuffle_seed)
    overrides = _local_data(task, leaves)
    data = contextlib.nullcontext() if overrides else prepared_datasets(task, stager)
    try:
        with sandboxed_code_eval(), splits_processed_once(), data:
            # TaskManager.load accepts overrides only for the user's own definitions; its factory accepts them for all.
            built = TaskFactory().build(index[task.name], overrides=overrides, registry=index)
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
    return _NO_DEFINITIONS.load(built if isinstance(built, list) else [built])


def _source(task: Task) -> str:
    return task.data_path or ", ".join(f"{repo}@{commit[:12]}" for repo, commit in task.data_revisions)


def _check_nltk_data(name: str) -> None:
    """Check that IFEval finds NLTK's data: its definition looks for them when it is imported, and downloads them."""
    packaged = find_packaged_dataset(name)
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
            f"{name}: NLTK's sentence splitter ({_NLTK_RESOURCE}) is not in {folder}."
            " Run `hpcq stage MANIFEST` on a machine with a network."
        ) from error


def _local_data(task: Task, leaves: Mapping[str, str]) -> dict[str, Any]:
    """Return the overrides with which definitions read the documents in `task.data_path`; empty if that is None.

    A leaf of a group reads the folder of its name. lm-eval passes the file of a definition to `custom_dataset` in
    `config_source` (0.4.13), which identifies the leaf.
    """
    if task.data_path is None:
        return {}
    folder = Path(task.data_path)
    is_leaf = tuple(leaves) == (task.name,)
    if task.data_digest not in (None, digest_of_items(folder, () if is_leaf else leaves)):
        raise SetupError(
            f"{folder}: the documents of {task.name} have changed since the plan was made."
            " Submit the manifest again to plan with the current ones."
        )
    names = {source: name for name, source in leaves.items()}

    def load(config_source: str, **_: Any) -> datasets.DatasetDict:
        return _documents(folder if is_leaf else folder / names[config_source])

    return {"custom_dataset": load, "dataset_name": None, "dataset_kwargs": None}


def _documents(folder: Path) -> datasets.DatasetDict:
    """Load every `<split>.jsonl` of `folder` into memory."""
    files = {path.stem: [path] for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise FileNotFoundError(f"{folder} has no .jsonl file")
    return read_json_documents(files)


def configure_leaf(name: str, leaf: Any, task: Task) -> None:
    """Apply the manifest's overrides as lm-eval's command line does; reject those that it would ignore silently."""
    if getattr(leaf, "UNSAFE_CODE", False) and not task.runs_code:
        raise UserInputError(
            f"tasks: {name} runs code that a model wrote: set tasks.allow_code_execution = true, or remove the task."
        )
    defined = leaf.get_config("num_fewshot")
    if task.num_fewshot not in (None, 0) and defined == 0:
        raise UserInputError(
            f"tasks.options.{task.name}.num_fewshot: {task.num_fewshot} is not possible:"
            f" the definition of {name} fixes 0. Remove the option."
        )
    if task.num_fewshot is not None or defined is None:
        leaf.set_config(key="num_fewshot", value=task.num_fewshot or 0)
    apply_sampling(name, leaf, task)


def _build_requests(name: str, leaf: Any, task: Task, chat: ChatTemplate | None = None) -> None:
    """Build the leaf's Instances, and prevent lm-eval from processing documents or building Instances again.

    It does both when it scores: definitions that shuffle choices would shuffle them again, and other few-shot examples
    would be drawn, because the leaf's generator has advanced. The requests would differ from the answered ones.
    """
    documents = leaf.eval_docs
    setattr(leaf, "test_docs" if leaf.has_test_docs() else "validation_docs", lambda: documents)
    build_instances(name, leaf, task, limit=task.limit, chat=chat)
    leaf.build_all_requests = lambda **_: None


def build_instances(name: str, leaf: Any, task: Task, *, limit: int | None, chat: ChatTemplate | None) -> None:
    """Build the Instances of a leaf's first documents.

    Args:
        name: Name of the leaf.
        leaf: lm-eval's Task object.
        task: The task.
        limit: Number of documents; None: all.
        chat: Chat template that the prompts need; None: they need none.

    Raises:
        WorkerError: lm-eval cannot make the requests.
    """
    leaf.set_fewshot_seed(seed=task.fewshot_seed)
    try:
        leaf.build_all_requests(limit=limit, **prompt_arguments(task.prompt, chat))
    except (ValueError, TypeError, LookupError, AssertionError, jinja2.UndefinedError) as error:
        source = f" in {task.data_path}" if task.data_path else ""
        raise WorkerError(
            f"{name}: lm-eval cannot make its requests: {_reason(error)}{_first_invalid(leaf)}."
            f" Check the items{source}."
        ) from error


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
