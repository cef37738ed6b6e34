"""Reader of the catalog's TOML files, for gpus.py, models.py and the others; typed records from rows."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from enum import StrEnum
from functools import lru_cache
from importlib import resources
from typing import Any, TypeVar

Record = TypeVar("Record")

FOLDER = resources.files("hpcq.catalog")
"""Folder of the catalog's files."""

_TYPE_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


class RowError(ValueError):
    """A row does not have the fields of its record; the message is a phrase such as "'name' is missing"."""


@lru_cache
def catalog_rows(file_name: str) -> dict[str, Any]:
    """Return the content of `hpcq/catalog/<file_name>`. It is cached: do not modify it."""
    return tomllib.loads(FOLDER.joinpath(file_name).read_text(encoding="utf-8"))


def with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a row with its lists as tuples, which are hashable."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def make_record(kind: type[Record], row: object, **more: object) -> Record:
    """Return the dataclass `kind` with the fields of a row that others wrote, after a check of names and types.

    Args:
        kind: A dataclass whose fields are strings, numbers, booleans, enums, or tuples of strings or integers.
        row: The TOML table.
        more: Fields that the row must not have.

    Raises:
        RowError: A field is unknown, missing, or of another type.
    """
    if not isinstance(row, dict):
        raise RowError("must be a table")
    declared = {one.name: one for one in dataclasses.fields(kind) if one.name not in more}  # type: ignore[arg-type]
    for name in row:
        if name not in declared:
            raise RowError(f"unknown key '{name}'; allowed are {', '.join(sorted(declared))}")
    for name, one in declared.items():
        if name not in row and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise RowError(f"'{name}' is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _converted(name, value, hints[name]) for name, value in row.items()}, **more)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a TOML value as the type of its field."""
    if isinstance(hint, types.UnionType):  # optional: TOML has no null
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _as_tuple(name, value, typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in tuple(hint):
            raise RowError(f"'{name}' must be one of {', '.join(hint)}")
        return hint(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise RowError(f"'{name}' must be {_TYPE_NAMES[hint]}")
    return value


def _as_tuple(name: str, value: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a list as a tuple of any length (`tuple[str, ...]`) or of a fixed one (`tuple[int, int]`)."""
    is_any_length = items[-1] is Ellipsis
    is_right = isinstance(value, list) and all(type(item) is items[0] for item in value)
    if not is_right or not (is_any_length or len(value) == len(items)):
        plural = "strings" if items[0] is str else "integers"
        count = "" if is_any_length else f"{len(items)} "
        raise RowError(f"'{name}' must be a list of {count}{plural}")
    return tuple(value)
