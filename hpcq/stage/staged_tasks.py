"""Markers of staged tasks: which prepared data sets a task's definition reads, without importing lm-eval."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import SupportFiles, find_packaged_dataset
from hpcq.catalog.tasks import find_task, known_task
from hpcq.core import environments
from hpcq.core.addressing import DIGEST_CHARACTERS, address_of, slug
from hpcq.core.files import storage_errors, write_text
from hpcq.core.hub_cache import HubCache
from hpcq.core.work_records import Task, TaskSize

ENVIRONMENT = "transformers"
"""Environment whose lm-eval constructs the tasks that are staged."""


def support_files(task: Task) -> tuple[SupportFiles, ...]:
    """Return further files that the task needs, and that packages contain (NLTK's data for IFEval)."""
    info = known_task(task.name, task.definitions) if find_task(task.name) is None else None
    packaged = (find_packaged_dataset(name) for name in (task.name, *(info.members if info else ())))
    return tuple(dict.fromkeys(support for one in packaged if one for support in one.support))


def is_task_staged(task: Task, cache: HubCache) -> bool:
    """Return whether everything that the task reads at its commits is in `cache`.

    Raises:
        StorageError: The marker cannot be read.
    """
    folders = _read_task_marker(_marker(task, cache))
    is_complete = folders is not None and all(is_prepared(cache.prepared / folder) for folder in folders)
    return is_complete and all(support.staged_path.is_dir() for support in support_files(task))


def is_data_present(task: Task) -> bool:
    """Return whether the data of a task are on this file system: staged from the hub, or in a folder.

    Raises:
        StorageError: A marker cannot be read.
    """
    if task.data_path is not None:
        return Path(task.data_path).is_dir()
    if task.definitions and not task.data_revisions:
        return True  # its documents are next to its definition
    return task.cache is not None and is_task_staged(task, task.cache)


def is_prepared(folder: Path) -> bool:
    """Return whether a prepared data set has all files that `save_to_disk` (datasets 5.2) wrote and lists.

    The folder was committed as a whole; a cleaning of the file system may have removed some files since.
    """
    try:
        splits = [folder / name for name in _json(folder / "dataset_dict.json")["splits"]]
    except FileNotFoundError:
        splits = [folder]  # a data set of one split
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(_has_files(split) for split in splits)


def _has_files(split: Path) -> bool:
    try:
        names = [file["filename"] for file in _json(split / "state.json")["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all((split / name).is_file() for name in ("dataset_info.json", *names))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def staged_size(task: Task, cache: HubCache) -> TaskSize | None:
    """Return the size of a staged task; None: it is not staged, or was not counted."""
    try:
        return TaskSize(**_json(_marker(task, cache))["size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def staged_examples(task: Task, cache: HubCache) -> int | None:
    """Return how many few-shot examples each prompt of a staged task can have; None: it is not staged, or unknown."""
    try:
        return int(_json(_marker(task, cache))["examples"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_task_marker(
    task: Task,
    cache: HubCache,
    folders: Sequence[Path],
    size: TaskSize | None = None,
    examples: int | None = None,
) -> None:
    """Commit the marker of a task.

    Args:
        task: The task.
        cache: Folders of what is staged.
        folders: Its prepared data sets.
        size: Number and length of its requests, if they were counted.
        examples: Largest possible number of few-shot examples in its prompts, if it is known.
    """
    names = sorted({folder.relative_to(cache.prepared).as_posix() for folder in folders})
    document = {
        "schema": 1,
        "task": task.name,
        "versions": dict(_versions()),
        "revisions": dict(task.data_revisions),
        "folders": names,
        **({"size": dataclasses.asdict(size)} if size else {}),
        **({} if examples is None else {"examples": examples}),
    }
    write_text(_marker(task, cache), json.dumps(document, indent=1) + "\n")


def _versions() -> tuple[tuple[str, str], ...]:
    return environments.locked_versions(ENVIRONMENT, ["lm-eval"])


def _marker(task: Task, cache: HubCache) -> Path:
    own = (task.definitions,) if task.definitions else ()
    key = address_of("staged task", task.name, _versions(), sorted(task.data_revisions), *own)[:DIGEST_CHARACTERS]
    return cache.prepared / "tasks" / f"{slug(task.name)}-{key}.json"


def _read_task_marker(path: Path) -> list[str] | None:
    """Return the names of the prepared folders; None: there is no marker, or it is damaged."""
    try:
        with storage_errors(path):
            document = json.loads(path.read_text(encoding="utf-8"))
        return [str(folder) for folder in document["folders"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
