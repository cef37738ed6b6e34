"""Items in JSON lines: encoding, lines, and the types of fields, checked without other libraries.

Files with other types in a field cannot be loaded as a table: pyarrow would refuse them without naming the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hpcq.core.errors import UserInputError

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


class JsonLine(NamedTuple):
    """A line of a file.

    Attributes:
        place: The file and the number of the line, 'items/test.jsonl:3'.
        document: The item.
    """

    place: str
    document: dict[str, Any]


class _FirstUse(NamedTuple):
    kind: str
    place: str


def read_json_lines(paths: Sequence[Path]) -> list[JsonLine]:
    """Return the items in the files of one split, without empty lines.

    Raises:
        UserInputError: A line is no JSON object in UTF-8, or a field has values of several types (null: of each).
        OSError: A file cannot be read.
    """
    lines = [line for path in paths for line in _read_lines(path)]
    kinds: dict[tuple[str, ...], _FirstUse] = {}
    for line in lines:
        for name, value in line.document.items():
            _check_kind(value, (name,), line.place, kinds)
    return lines


def _read_lines(path: Path) -> Iterator[JsonLine]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
            document = json.loads(text) if text else {}
        except UnicodeDecodeError as error:
            raise UserInputError(f"{place}: not UTF-8 ({error.reason}): save the file in UTF-8.") from error
        except json.JSONDecodeError as error:
            raise UserInputError(f"{place}: not JSON ({error.msg}): write one JSON object per line.") from error
        except RecursionError as error:
            raise UserInputError(f"{place}: too many lists or objects in each other.") from error
        if not isinstance(document, dict):
            raise UserInputError(f"{place}: {_kind(document)} instead of a JSON object with the item's fields.")
        if text:
            yield JsonLine(place, document)


def _check_kind(value: object, path: tuple[str, ...], place: str, kinds: dict[tuple[str, ...], _FirstUse]) -> None:
    """Check that a field, and what is in its lists and objects, has the type of its first value.

    Args:
        value: The value.
        path: Names of the fields around it, outermost first; '' for an element of a list.
        place: File and line.
        kinds: The first types; new ones are added.
    """
    if value is None:
        return
    found = _kind(value)
    first = kinds.setdefault(path, _FirstUse(found, place))
    if found != first.kind:
        raise UserInputError(f"{place}: {_field(path)} is {found}, but {first.kind} in {first.place}.")
    if isinstance(value, list):
        for element in value:
            _check_kind(element, (*path, ""), place, kinds)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_kind(inner, (*path, name), place, kinds)


def _field(path: tuple[str, ...]) -> str:
    """Return a field in words: 'a.b' for a field of an object."""
    if not path[-1]:
        return f"an element of {_field(path[:-1])}"
    return repr(".".join(name for name in path if name))


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")
