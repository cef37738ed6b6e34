"""Names of tasks in a manifest: lm-eval's tasks, groups and tags, and those that `tasks.include` adds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hpcq.catalog.make_task_index import NoEnvironmentError, ensure_definitions_index, ensure_index
from hpcq.catalog.tasks import TaskInfo, find_suite, find_task, generates_text, indexed_task, known_task
from hpcq.core.errors import UserInputError
from hpcq.core.task_definitions import digest_of_definitions
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.schema import DATA_SOURCES, Manifest
from hpcq.manifest.value_origin import KeyPath


def task_entries(manifest: Manifest) -> list[tuple[KeyPath, str, int | None]]:
    """Return the key path, the name and the suite's number of few-shot examples of every task.

    A tag, or a group without a score of its own, is replaced by its members.
    """
    return [
        (key_path, name, shots) for key_path, named, shots in _named(manifest) for name in expanded(named, manifest)
    ]


def _named(manifest: Manifest) -> Iterator[tuple[KeyPath, str, int | None]]:
    for position, name in enumerate(manifest.tasks.suites):
        suite = find_suite(name)
        yield from ((("tasks", "suites", position), task, shots) for task, shots in (suite.tasks if suite else ()))
    yield from ((("tasks", "use", position), name, None) for position, name in enumerate(manifest.tasks.use))


def include_folders(manifest: Manifest) -> tuple[Path, ...]:
    """Return the folders in `tasks.include`, which may not exist."""
    return tuple(resolve_path(text, manifest) for text in manifest.tasks.include)


def definitions_digest(manifest: Manifest) -> str | None:
    """Return the digest of the user's definitions; None: there are none, or a folder does not exist."""
    folders = include_folders(manifest)
    if not folders or not all(map(is_folder, folders)):
        return None
    return digest_of_definitions(folders)


def ensure_task_indexes(manifest: Manifest) -> None:
    """Make the indexes that the manifest's names need, unless they exist. The catalog's names need none.

    An error in the user's definitions is reported by `check_definitions`, and names that stay unknown because the
    environment with lm-eval does not exist by `check_names`.

    Raises:
        SetupError: The program that makes an index failed.
        StorageError: The cache cannot be written.
    """
    rows = [find_task(name) for _, name, _ in _named(manifest)]
    has_groups_in_folder = manifest.tasks.data not in DATA_SOURCES and any(row and row.is_group for row in rows)
    if manifest.tasks.include or has_groups_in_folder or not all(rows):
        with contextlib.suppress(NoEnvironmentError, UserInputError):
            ensure_index()
            digest = definitions_digest(manifest)
            if digest is not None:
                ensure_definitions_index(list(include_folders(manifest)), digest)


def task_info(name: str, manifest: Manifest) -> TaskInfo | None:
    """Return what is known about a task that the manifest names; None: it is unknown."""
    return known_task(name, definitions_digest(manifest))


def writes_text(name: str, manifest: Manifest) -> bool:
    """Return whether the models write text in a task that the manifest names."""
    return generates_text(name, definitions_digest(manifest))


def task_members(name: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the tasks that a name stands for: the members of a group, or itself."""
    info = task_info(name, manifest)
    if info is not None and not info.members:
        info = indexed_task(name)
    return info.members if info and info.members else (name,)


def expanded(name: str, manifest: Manifest) -> tuple[str, ...]:
    """Return the names that replace a tag, or a group without a score of its own; otherwise the name itself."""
    info = task_info(name, manifest)
    if info is None or not info.children or info.problem:
        return (name,)
    return tuple(leaf for child in info.children for leaf in expanded(child, manifest))
