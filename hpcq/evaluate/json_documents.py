"""Documents of a task in JSON lines files, one or several per split.

Not with the JSON loader of datasets: it uses a cache, under a lock, in the home folder that all jobs share, and it
converts strings that look like dates to dates (datasets 5.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from hpcq.core.errors import UserInputError
from hpcq.core.sentences import first_line

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


class _Line(NamedTuple):
    place: str
    document: dict[str, Any]


def read_json_documents(files: Mapping[str, Sequence[Path]]) -> datasets.DatasetDict:
    """Load the files of every split into memory. Each document gets all columns of its split.

    Raises:
        UserInputError: A line is no JSON object in UTF-8, or a column has values of several types.
    """
    return datasets.DatasetDict({split: _read_split(paths) for split, paths in files.items()})


def _read_split(paths: Sequence[Path]) -> datasets.Dataset:
    lines = [line for path in paths for line in _read_lines(path)]
    columns = dict.fromkeys(name for line in lines for name in line.document)
    for name in columns:
        _check_kinds(name, lines)
    try:
        return datasets.Dataset.from_dict({name: [line.document.get(name) for line in lines] for name in columns})
    except (TypeError, ValueError) as error:  # pyarrow's: the values inside lists or objects differ
        reason = first_line(error)
        raise UserInputError(f"{paths[0]}: its documents have values of different types ({reason}).") from error


def _read_lines(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
            document = json.loads(text) if text else {}
        except UnicodeDecodeError as error:
            raise UserInputError(f"{place}: not UTF-8 ({error.reason}): save the file in UTF-8.") from error
        except json.JSONDecodeError as error:
            raise UserInputError(f"{place}: not JSON ({error.msg}): write one JSON object per line.") from error
        if not isinstance(document, dict):
            raise UserInputError(f"{place}: {_kind(document)} instead of a JSON object with the item's fields.")
        if text:
            yield _Line(place, document)


def _check_kinds(name: str, lines: Sequence[_Line]) -> None:
    """Check that a column has values of one type; null is of every type."""
    filled = [line for line in lines if line.document.get(name) is not None]
    for line in filled:
        first, found = _kind(filled[0].document[name]), _kind(line.document[name])
        if found != first:
            raise UserInputError(f"{line.place}: {name!r} is {found}, but {first} in {filled[0].place}.")


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")
