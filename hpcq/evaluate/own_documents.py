"""Documents in JSON lines next to a user's definitions: `dataset_path: json` with `dataset_kwargs.data_files`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

import datasets

from hpcq.core.errors import UserInputError
from hpcq.core.task_definitions import read_folders
from hpcq.core.work_records import Task
from hpcq.evaluate.json_documents import read_json_documents

_DEFAULT_SPLIT = "train"
"""Split of files that `data_files` assigns to none (datasets 5.2)."""


class FileChoiceError(ValueError):
    """It is not clear which file a definition reads; the message is a clause with the fix."""


def split_files(data_files: object) -> dict[str, list[str]]:
    """Return the names of files by split, from the value of `data_files`."""
    if isinstance(data_files, Mapping):
        return {str(split): _as_list(names) for split, names in data_files.items()}
    return {_DEFAULT_SPLIT: _as_list(data_files)}


def _as_list(names: object) -> list[str]:
    return [str(name) for name in names] if isinstance(names, list | tuple) else [str(names)]


def read_own_documents(task: Task, options: Mapping[str, Any]) -> Any:
    """Return the documents that a definition of the user reads, from the run's copies of the files.

    Args:
        task: The task.
        options: `dataset_kwargs` of the definition. With `split`, that split is returned, otherwise all splits.

    Raises:
        UserInputError: A file does not exist, is not the only one of its name, or has an invalid line.
        SetupError: The files are not those of the plan.
    """
    folders = read_folders(task)
    files = {
        split: [_existing(name, folders, task) for name in names]
        for split, names in split_files(options.get("data_files")).items()
    }
    loaded: datasets.DatasetDict = read_json_documents(files)
    split = options.get("split")
    return loaded[split] if split else loaded


def _existing(name: str, folders: tuple[Path, ...], task: Task) -> Path:
    try:
        found = find_file(name, folders)
    except FileChoiceError as error:
        raise UserInputError(f"{task.name}: {error}.") from None
    if found is None:
        raise UserInputError(
            f"{task.name}: the file {name!r} in data_files is not in {', '.join(map(str, folders))}:"
            " add it, or correct data_files."
        )
    return found


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return a file of `data_files`: relative to a folder of definitions, or to one of its subfolders.

    A definition does not say where it is to what reads its data, so a name must not fit several files.

    Raises:
        FileChoiceError: Several files have this name, or the file is not in a folder, so that no digest covers it.
    """
    found = list(dict.fromkeys(Path(normpath(path)) for path in _candidates(name, folders)))
    listed = ", ".join(map(str, folders))
    if any(not any(path.is_relative_to(normpath(folder)) for folder in folders) for path in found):
        raise FileChoiceError(f"the file {name!r} in data_files is outside of {listed}: copy it there")
    if len(found) > 1:
        raise FileChoiceError(
            f"{name!r} in data_files may be {' or '.join(map(str, found))}: give the files different names, or write"
            " the path from the folder in tasks.include"
        )
    return found[0] if found else None


def _candidates(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        places = (folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir()))
        yield from (place / name for place in places if (place / name).is_file())
