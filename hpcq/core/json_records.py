"""Frozen dataclasses as JSON, and back with a check of every field.

Only the standard library is needed: a job reads its record before anything else is imported. Reading a file, also a
damaged or foreign one, executes no code in it. The result is a record of the declared types, or an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

_Record = TypeVar("_Record")


class InvalidRecordError(ValueError):
    """A document does not have the fields or types of its record. The message names the field."""


def to_json(record: object) -> str:
    """Return a dataclass as one line of JSON."""
    return json.dumps(dataclasses.asdict(record), default=_path)  # type: ignore[call-overload]


def from_json(kind: type[_Record], text: str | bytes) -> _Record:
    """Return the record of class `kind` that `to_json` wrote.

    Raises:
        InvalidRecordError: It is no JSON, or a field is unknown, missing or of another type.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidRecordError(f"it is not JSON ({error})") from error
    found: _Record = _read(kind, document, kind.__name__)
    return found


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _read(kind: Any, value: object, place: str) -> Any:
    if kind is Any:
        return value
    if reader := _GENERIC.get(typing.get_origin(kind)):
        return reader(typing.get_args(kind), value, place)
    return (_read_record if dataclasses.is_dataclass(kind) else _read_scalar)(kind, value, place)


def _read_record(kind: Any, value: object, place: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(place, "an object", value)
    known = _field_types(kind)
    if unknown := value.keys() - known.keys():
        raise InvalidRecordError(f"{place}: unknown field {min(unknown)!r}")
    fields = {name: _read(known[name], item, f"{place}.{name}") for name, item in value.items()}
    if missing := {item.name for item in dataclasses.fields(kind) if _is_required(item)} - fields.keys():
        raise InvalidRecordError(f"{place}: the field {min(missing)!r} is missing")
    return kind(**fields)


@functools.cache
def _field_types(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind) if item.init}


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.init and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _read_union(kinds: tuple[Any, ...], value: object, place: str) -> Any:
    """Return `value` as the first of `kinds` that it fits. Literal fields distinguish records."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    errors = []
    for kind in kinds:
        try:
            return _read(kind, value, place)
        except InvalidRecordError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else _unexpected(place, f"one of {len(kinds)} types", value)


def _read_literal(allowed: tuple[Any, ...], value: object, place: str) -> Any:
    for one in allowed:
        if type(value) is type(one.value if isinstance(one, Enum) else one) and value == one:
            return one
    raise _unexpected(place, " or ".join(map(repr, map(str, allowed))), value)


def _read_tuple(kinds: tuple[Any, ...], value: object, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _unexpected(place, "an array", value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:  # noqa: PLR2004 (tuple[X, ...])
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _unexpected(place, f"an array of {len(kinds)}", value)
    return tuple(_read(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _read_mapping(kinds: tuple[Any, ...], value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unexpected(place, "an object", value)
    return {key: _read(kinds[1], item, f"{place}.{key}") for key, item in value.items()}


def _read_scalar(kind: Any, value: object, place: str) -> Any:
    """Return a string, number, truth value, enum or path. As in Python, an int or a bool may stand for a float."""
    if kind is float and isinstance(value, int):
        return value
    if issubclass(kind, Enum | Path) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            raise _unexpected(place, f"a value of type {kind.__name__}", value) from None
    if type(value) is not kind:
        raise _unexpected(place, f"a value of type {kind.__name__}", value)
    return value


_GENERIC: Mapping[Any, Callable[[tuple[Any, ...], object, str], Any]] = {
    typing.Union: _read_union,
    types.UnionType: _read_union,
    typing.Literal: _read_literal,
    tuple: _read_tuple,
    dict: _read_mapping,
    Mapping: _read_mapping,
}


def _unexpected(place: str, expected: str, value: object) -> InvalidRecordError:
    shown = repr(value)
    return InvalidRecordError(f"{place}: expected {expected}, found {shown[:60]}{'…' if len(shown) > 60 else ''}")  # noqa: PLR2004
