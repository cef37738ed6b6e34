"""Error messages for users: pydantic's errors (2.14) as sentences, and suggestions for unknown names."""

from __future__ import annotations

import datetime
import difflib
import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hpcq.manifest.value_origin import KeyPath, dotted_key

Problem = tuple[KeyPath, str]
"""The key path of the invalid value, and a full sentence."""

_MAX_VALUE_LENGTH = 60
"""Maximum characters of a text, or digits of a number, in a message."""
_MAX_LISTED_NAMES = 20
_KEY = "[key]"
"""pydantic's marker for an error in a mapping's key rather than its value."""
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than_equal": "{ge:.12g} or more",
    "greater_than": "above {gt:.12g}",
    "less_than": "below {lt:.12g}",
    "less_than_equal": "{le:.12g} or less",
    "string_too_short": "a text of {min_length} or more characters",
    "string_pattern_mismatch": "a SHA-256, 64 hexadecimal digits",
}


def to_problems(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """Return one problem per pydantic error, in the order of the schema."""
    return [_problem(details, schema) for details in error.errors(include_url=False)]


def format_value(value: object) -> str:
    """Return `value` in TOML-like notation, shortened for a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value if len(value) <= _MAX_VALUE_LENGTH else f"{value[:_MAX_VALUE_LENGTH]}…"
        return f"'{text}'"
    if isinstance(value, int) and abs(value) >= 10**_MAX_VALUE_LENGTH:
        return f"a number of more than {_MAX_VALUE_LENGTH} digits"
    for kind, name in ((dict, "a table"), (list, "a list"), (datetime.date, "a date"), (datetime.time, "a time")):
        if isinstance(value, kind):
            return name if value else name.replace("a ", "an empty ")
    return str(value)


def _problem(details: ErrorDetails, schema: type[BaseModel]) -> Problem:
    key_path, section = _walk(details["loc"], schema)
    context = details.get("ctx", {})
    match details["type"]:
        case "refused":
            return (*key_path, *context["within"]), context["sentence"]
        case "extra_forbidden":
            known = sorted(section.model_fields) if section else []
            sentence = f"unknown key; allowed here are {', '.join(known)}."
            return key_path, sentence + did_you_mean(str(key_path[-1]), known)
        case "missing":
            description = section.model_fields[str(key_path[-1])].description if section else ""
            return key_path, f"is missing. {description}"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"\d+", context["expected"])
            sentence = f"must be one of {', '.join(allowed)}, not {format_value(details['input'])}."
            return key_path, sentence + did_you_mean(format_value(details["input"]).strip("'"), allowed)
        case "tuple_type" if isinstance(details["input"], dict):
            return key_path, f"must be a list of tables, not one table; write [[{dotted_key(key_path)}]]."
        case kind:
            expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else details["msg"]
            return key_path, f"must be {expected}, not {format_value(details['input'])}."


def _walk(location: tuple[str | int, ...], schema: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """Return the key path of pydantic's `location` without union tags, and the schema of the last key's table."""
    section: type[BaseModel] | None = schema
    annotations: list[Any] = [schema]
    key_path: list[str | int] = []
    for step in location:
        if step == _KEY:
            continue
        if step in _tags(annotations):
            annotations = [kind for kind, tag in _members(annotations) if tag == step]
            continue
        key_path.append(step)
        section = next((kind for kind, _ in _members(annotations) if _is_section(kind)), None)
        annotations = [inner for kind, _ in _members(annotations) for inner in _item_types(kind, step)]
    return tuple(key_path), section


def _tags(annotations: list[Any]) -> set[str]:
    return {tag for _, tag in _members(annotations) if tag}


def _members(annotations: list[Any]) -> Iterator[tuple[Any, str | None]]:
    """Yield every plain type in `annotations`, with its union tag or None."""
    for annotation in annotations:
        origin = get_origin(annotation)
        if origin is Annotated:
            inner, *metadata = get_args(annotation)
            tag = next((item.tag for item in metadata if hasattr(item, "tag")), None)
            yield from ((kind, own or tag) for kind, own in _members([inner]))
        elif origin in (Union, types.UnionType):
            yield from _members(list(get_args(annotation)))
        else:
            yield annotation, None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _item_types(kind: Any, step: str | int) -> list[Any]:
    """Return the types of the value at `step` of a table, a mapping or a list."""
    if _is_section(kind):
        field = kind.model_fields.get(step)
        return [field.annotation] if field else []
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return [arguments[1]]
    return [arguments[0]] if get_origin(kind) is tuple and isinstance(step, int) else []


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean …?' with the closest of `known`, or the first with that prefix, ignoring case; else ''."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    close = close or [other for other in by_lower if name and other.startswith(name.lower())]
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to five names of `known` that are similar to `name`, the most similar first."""
    by_lower = {other.lower(): other for other in known}
    return [by_lower[close] for close in difflib.get_close_matches(name.lower(), by_lower, n=5)]


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not in `known`. Names with a tool are only suggested."""
    suggested = tuple(known)
    names = tuple(one for one in suggested if ":" not in one and not one.startswith("study-"))
    listed = ", ".join(names[:_MAX_LISTED_NAMES]) + (", …" if len(names) > _MAX_LISTED_NAMES else "")
    return f"unknown {what} '{name}'; known are {listed}.{did_you_mean(name, suggested)}"
