"""Items in a user's folder (`tasks.data`): their JSON lines, and whether there are enough few-shot examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcq.catalog.tasks import TaskInfo, indexed_task
from hpcq.core.digests import item_files
from hpcq.core.errors import UserInputError
from hpcq.core.file_facts import remembered
from hpcq.core.json_lines import read_json_lines
from hpcq.manifest.context import Context, NamedTask
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.schema import DATA_SOURCES
from hpcq.manifest.value_origin import KeyPath

_FACT = "json-lines"
_VERSION = "1"


def check_items(context: Context) -> Iterator[Problem]:
    """Find files of items with an invalid line, and prompts with more few-shot examples than there are."""
    settings = context.manifest.tasks
    for task in context.tasks:
        folders: dict[str, Path] = {}
        if task.folder is not None and settings.data not in DATA_SOURCES and not context.manifest.is_synthetic:
            is_group = task.info is not None and task.info.is_group
            folders = {name: task.folder / name if is_group else task.folder for name in task.members}
            if problem := _first_problem(folders):
                yield ("tasks", "data"), problem
                continue
        yield from _check_examples(task, folders, context)


def _first_problem(folders: dict[str, Path]) -> str | None:
    files = (path for folder in folders.values() for path in item_files(folder))
    return next((problem for path in files if (problem := _facts(path).get("problem"))), None)


def _facts(path: Path) -> dict[str, Any]:
    """Return the number of items in a file, or the problem that makes it invalid; empty if it cannot be read."""
    try:
        facts: dict[str, Any] = remembered(path, _read, name=_FACT, version=_VERSION)
    except OSError:  # the digest of the items reports it
        return {}
    return facts


def _read(path: Path) -> dict[str, Any]:
    try:
        return {"items": len(read_json_lines([path]))}
    except UserInputError as error:
        return {"problem": str(error)}


def _check_examples(task: NamedTask, folders: dict[str, Path], context: Context) -> Iterator[Problem]:
    """Find a task whose prompts would have more examples than its data."""
    options = context.manifest.tasks.options.get(task.name)
    own = options.num_fewshot if options else None
    shots = task.num_fewshot if own is None else own
    if shots is None or task.info is None:
        return
    key: KeyPath = ("tasks", "options", task.name, "num_fewshot") if own is not None else task.key_path
    found = _available(task, folders)
    if found is not None and shots > found:
        yield key, f"{shots} is more than the {found} items that '{task.name}' has for few-shot examples."


def _available(task: NamedTask, folders: dict[str, Path]) -> int | None:
    """Return how many examples each prompt can have; None: unknown before the data are staged."""
    described = task.info if task.info and task.info.example_splits else indexed_task(task.name)
    if not folders or described is None:
        return task.info.examples if task.info else None
    counts = [_of_member(folders.get(name), split) for name, split in _example_splits(described)]
    known = [count for count in counts if count is not None]
    return min(known, default=None)


def _example_splits(info: TaskInfo) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Yield each member with the split of its examples, and whether one more is drawn."""
    for name, split, excludes_item in zip(info.members, info.example_splits, info.excludes_item, strict=True):
        if split:
            yield name, (split, excludes_item)


def _of_member(folder: Path | None, split: tuple[str, bool]) -> int | None:
    name, excludes_item = split
    path = folder / f"{name}.jsonl" if folder else None
    if path is None or not path.is_file():
        return None
    items = _facts(path).get("items")
    return None if items is None else int(items) - excludes_item
