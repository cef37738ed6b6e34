"""Definitions of tasks in a user's folder, in lm-eval's YAML: reading them without executing their code.

lm-eval skips invalid files, with a line in its debug log. Here they are errors, with the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from hpcq.core.errors import UserInputError
from hpcq.core.json_lines import read_json_lines
from hpcq.evaluate.own_documents import FileChoiceError, find_file, split_files


class DefinitionError(ValueError):
    """A definition is invalid. The message is a sentence that begins with the file and, if known, the line."""


def read_definitions(folders: Sequence[Path]) -> dict[str, Entry]:
    """Return the tasks, groups and tags that the YAML files in `folders` define.

    Files that others include, without `task` or `group`, define nothing.

    Raises:
        DefinitionError: A file is invalid, two files define the same name, or a group contains itself.
    """
    index: dict[str, Entry] = {}
    for folder in folders:
        for path in yaml_files(folder):
            _add(path, folder, folders, index)
    if not index:
        raise DefinitionError(f"{', '.join(map(str, folders))}: no YAML file defines a task (the key `task`).")
    finished: set[str] = set()
    for name in index:
        _refuse_cycles(name, index, (), finished)
    return index


def _refuse_cycles(name: str, index: Mapping[str, Entry], above: tuple[str, ...], finished: set[str]) -> None:
    """Refuse a group that contains itself, directly or through other groups, on which lm-eval recurses forever."""
    if name in above:
        chain = " > ".join([*above[above.index(name) :], name])
        raise DefinitionError(f"{index[name].yaml_path}: the group '{name}' contains itself ({chain}).")
    entry = index.get(name)
    if entry is None or entry.kind is not Kind.GROUP or name in finished:
        return
    members = (entry.cfg or {}).get("task")
    for member in members if isinstance(members, list) else ():
        named = member.get("group", member.get("task")) if isinstance(member, dict) else member
        if isinstance(named, str):
            _refuse_cycles(named, index, (*above, name), finished)
    finished.add(name)


def yaml_files(folder: Path) -> Iterator[Path]:
    """Yield the YAML files of a folder that lm-eval reads, sorted."""
    yield from sorted(path for path in folder.rglob("*.yaml") if "__pycache__" not in path.parts)


def _add(path: Path, folder: Path, folders: Sequence[Path], index: dict[str, Entry]) -> None:
    config = _load(path, folder)
    if not config.keys() & {"task", "group", "class"}:
        return
    key = "group" if "group" in config else "task"
    name = config.get(key)
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{path}: `{key}` must be the name of the {key}, a string.")
    if name in index and index[name].kind is not Kind.TAG:
        raise DefinitionError(f"{path}: '{name}' is also defined by {index[name].yaml_path}: rename one of them.")
    _check_data_files(path, config, folders)
    TaskIndex.process_cfg(config, path, index)


def _check_data_files(path: Path, config: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Check that the files of documents that a definition names exist and have valid lines."""
    for names in _data_files(config).values():
        if any("://" in name for name in names):  # the index describes why it cannot be evaluated
            continue
        try:
            read_json_lines([_existing(name, folders) for name in names])
        except FileChoiceError as error:
            raise DefinitionError(f"{path}: {error}.") from None
        except UserInputError as error:
            raise DefinitionError(str(error)) from None
        except OSError as error:
            raise DefinitionError(f"{path}: a file of data_files cannot be read ({error}).") from None


def _existing(name: str, folders: Sequence[Path]) -> Path:
    found = find_file(name, folders)
    if found is None:
        listed = ", ".join(map(str, folders))
        raise FileChoiceError(f"the file {name!r} in data_files is not in {listed}: add it, or correct data_files")
    return found


def _data_files(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the files of documents that a definition names, by split."""
    arguments = config.get("dataset_kwargs")
    if config.get("dataset_path") != "json" or not isinstance(arguments, dict) or not arguments.get("data_files"):
        return {}
    return split_files(arguments["data_files"])


def count_documents(config: Mapping[str, Any], split: str, folders: Sequence[Path]) -> int | None:
    """Return the number of documents of a split, in the files that a definition names; None: it names none."""
    names = _data_files(config).get(split)
    if names is None or any("://" in name for name in names):
        return None
    return len(read_json_lines([_existing(name, folders) for name in names]))


def _load(path: Path, folder: Path) -> dict[str, Any]:
    try:
        for included in _includes(path):
            if not included.is_file():
                raise DefinitionError(f"{path}: the included file {included} does not exist.")
            if not included.resolve().is_relative_to(folder.resolve()):
                raise DefinitionError(f"{path}: the included file {included} is outside of {folder}: copy it there.")
        config: dict[str, Any] = load_yaml(path, resolve_func=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DefinitionError(f"{place}: this is not valid YAML ({error.problem}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: this is not valid YAML ({error}).") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DefinitionError(f"{path}: lm-eval cannot read this definition ({error}).") from error
    return config


def _includes(path: Path) -> Iterator[Path]:
    """Yield the files that the key `include` of a file names."""
    loaded = load_yaml(path, resolve_func=False, recursive=False)
    named = loaded.get("include") or []
    for name in named if isinstance(named, list) else [named]:
        yield path.parent / str(name)
