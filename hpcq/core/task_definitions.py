"""Definitions of tasks by a user: their digest, and the copies that the jobs of a run read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcq.core.addressing import DIGEST_CHARACTERS, address_of
from hpcq.core.digests import digest_of_files
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_folder
from hpcq.core.work_records import Task

_IGNORED_FOLDERS = frozenset({"__pycache__", ".git", ".ipynb_checkpoints"})


def definition_files(folder: Path) -> tuple[str, ...]:
    """Return the files of a folder that can change its tasks, relative and sorted: all but caches and hidden ones."""
    return tuple(sorted(_files(folder)))


def _files(folder: Path) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED_FOLDERS and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and not name.endswith(".pyc"):
                yield (Path(where) / name).relative_to(folder).as_posix()


def digest_of_definitions(folders: Sequence[Path]) -> str:
    """Return the SHA-256 over names and contents of all files in the folders, in their order.

    Raises:
        OSError: A file cannot be read.
    """
    return address_of("definitions", [digest_of_files(folder, definition_files(folder)) for folder in folders])


def copies(run_folder: Path, digest: str, count: int) -> tuple[Path, ...]:
    """Return the folders of a run's copies of `count` folders of definitions with this digest."""
    parent = run_folder / "task_definitions" / digest[:DIGEST_CHARACTERS]
    return tuple(parent / str(number) for number in range(count))


def copy_definitions(task: Task) -> None:
    """Copy the definitions of a task for its run's jobs, unless they are there.

    Raises:
        SetupError: They have changed since the plan was made.
        StorageError: The run's folder cannot be written.
    """
    if not task.definitions or not task.definition_copies or Path(task.definition_copies[0]).is_dir():
        return
    with committed_folder(Path(task.definition_copies[0]).parent) as folder:
        for number, source in enumerate(_unchanged(task, task.definition_folders)):
            for name in definition_files(source):
                target = folder / str(number) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)


def read_folders(task: Task) -> tuple[Path, ...]:
    """Return the folders with the task's definitions: the run's copies, or the originals if there are no copies yet.

    Raises:
        SetupError: The files are not those of the plan.
    """
    has_copies = bool(task.definition_copies) and Path(task.definition_copies[0]).is_dir()
    return _unchanged(task, task.definition_copies if has_copies else task.definition_folders)


def _unchanged(task: Task, folders: Sequence[str]) -> tuple[Path, ...]:
    found = tuple(map(Path, folders))
    if digest_of_definitions(found) != task.definitions:
        raise SetupError(
            f"{', '.join(folders)}: the definitions of {task.name} have changed since the plan was made. Submit the "
            "manifest again to plan with the current ones."
        )
    return found
