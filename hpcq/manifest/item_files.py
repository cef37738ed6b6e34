"""Files of item numbers (`tasks.options.<task>.items`): lm-eval's --samples format, or a number per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcq.core.files import IrregularFileError, read_regular
from hpcq.core.item_selection import ItemSelection, format_ranges, parse_ranges
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.schema import Manifest
from hpcq.manifest.task_names import task_members
from hpcq.manifest.value_origin import KeyPath

_SHOWN = 8
"""Maximum number of subtasks that a message lists."""
_FORMS = 'a JSON list of numbers, {"subtask": [numbers]}, or lines of a number or "subtask number"'


class ItemFileError(ValueError):
    """A file of item numbers is invalid; the message is a clause that begins with the place."""


def check_selections(context: Context) -> Iterator[Problem]:
    """Find invalid files of item numbers, and samples that are smaller than the number of subtasks."""
    settings = context.manifest.tasks
    for task in context.tasks:
        options = settings.options.get(task.name)
        if options and options.items is not None:
            key_path: KeyPath = ("tasks", "options", task.name, "items")
            place = f"'{options.items}'" if isinstance(options.items, str) else "the table"
            try:
                selection = listed_items(options.items, task.name, context.manifest)
            except ItemFileError as error:
                yield key_path, f"{place} {error}."
                continue
            members = task_members(task.name, context.manifest)
            unknown = [name for name, _ in selection.listed if members and name not in members]
            if unknown:
                listed = ", ".join([*members[:_SHOWN], *(["…"] if len(members) > _SHOWN else [])])
                yield key_path, f"{place} has items of '{unknown[0]}', but {task.name} has {listed}."
            elif without := [name for name in members if not dict(selection.listed).get(name)]:
                fix = "add some, or name the other subtasks in tasks.use"
                yield key_path, f"{place} has no items of '{without[0]}', so {task.name} has no score: {fix}."
            continue
        own = options.sample if options else None
        sample = own or (None if options and options.limit else settings.sample)
        if sample and task.info and sample.n < task.info.num_subtasks:
            within: KeyPath = ("options", task.name, "sample", "n") if own else ("sample", "n")
            subtasks = f"{task.info.num_subtasks} subtasks of '{task.name}'"
            yield ("tasks", *within), f"{sample.n} is less than the {subtasks}, each of which needs an item."


def listed_items(items: str | Mapping[str, str], task: str, manifest: Manifest) -> ItemSelection:
    """Return the items of a task's option `items`: those in a file, or, in a lock file, those of its table.

    Raises:
        ItemFileError: The file cannot be read, or is invalid.
    """
    if isinstance(items, str):
        return read_item_file(resolve_path(items, manifest), task)
    if not items:
        raise ItemFileError("lists no items")
    return ItemSelection(
        listed=tuple((name, format_ranges(parse_ranges(text))) for name, text in sorted(items.items()))
    )


def read_item_file(path: Path, task: str) -> ItemSelection:
    """Return the items that a file lists.

    Args:
        path: The file.
        task: Name of the task, for numbers without a subtask.

    Raises:
        ItemFileError: The file cannot be read, or is invalid.
    """
    try:
        text = read_regular(path).decode()
    except IrregularFileError as error:
        raise ItemFileError(f"cannot be read ({error})") from None
    except OSError as error:
        raise ItemFileError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ItemFileError(f"is not UTF-8 (byte {error.start})") from None
    found = _from_json(text, task) if text.lstrip()[:1] in ("{", "[") else _from_lines(text, task)
    if not any(found.values()):
        raise ItemFileError("lists no items")
    return ItemSelection(
        listed=tuple((name, format_ranges(numbers)) for name, numbers in sorted(found.items()) if numbers)
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ItemFileError(f"has '{repeated}' twice")
    return dict(pairs)


def _from_json(text: str, task: str) -> dict[str, list[int]]:
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except ItemFileError:
        raise
    except ValueError as error:
        raise ItemFileError(f"is not valid JSON ({error})") from None
    document: Mapping[str, Any] = content if isinstance(content, dict) else {task: content}
    for name, numbers in document.items():
        if not isinstance(numbers, list):
            raise ItemFileError(f"has no list of numbers for '{name}': write {_FORMS}")
        wrong = next((number for number in numbers if type(number) is not int or number < 0), None)
        if wrong is not None:
            raise ItemFileError(f"has {wrong!r} for '{name}', which is not the number of an item (0 or more)")
    return {name: list(numbers) for name, numbers in document.items()}


def _from_lines(text: str, task: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line_number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 2 or not words[-1].isascii() or not words[-1].isdecimal():  # noqa: PLR2004
            raise ItemFileError(f"has an invalid line {line_number} ({line.strip()[:40]!r}): write {_FORMS}")
        found.setdefault(words[0] if len(words) > 1 else task, []).append(int(words[-1]))
    return found
