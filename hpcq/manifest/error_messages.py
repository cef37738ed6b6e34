"""pydantic's errors as sentences: the key, the value, what is allowed and what was probably meant.

Knows pydantic's kinds of errors (2.14) and the schema's field descriptions; knows no key by name.
"""

from __future__ import annotations

import datetime
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hpcq.manifest.source import KeyPath, dotted
from hpcq.manifest.suggestions import did_you_mean

Problem = tuple[KeyPath, str]
"""Where, and a whole sentence."""

_LONGEST_SHOWN = 60
"""Characters of a text, digits of a number."""
_KEY = "[key]"
"""Where pydantic found fault with a key of a mapping, not with its value."""
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "above {gt:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "string_pattern_mismatch": "a SHA-256, 64 hexadecimal digits",
}


def problems_of(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """One problem for each of pydantic's errors, in the order of the schema."""
    return [_problem(details, schema) for details in error.errors(include_url=False)]


def shown(value: object) -> str:
    """A value as its user may have written it, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…"
        return f"'{text}'"
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_SHOWN:
        return f"a number of more than {_LONGEST_SHOWN} digits"
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
            listed = f"unknown key; allowed here are {', '.join(known)}."
            return key_path, listed + did_you_mean(str(key_path[-1]), known)
        case "missing":
            meaning = section.model_fields[str(key_path[-1])].description if section else ""
            return key_path, f"is missing. {meaning}"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"\d+", context["expected"])
            listed = f"must be one of {', '.join(allowed)}, not {shown(details['input'])}."
            return key_path, listed + did_you_mean(shown(details["input"]).strip("'"), allowed)
        case "tuple_type" if isinstance(details["input"], dict):
            return key_path, f"must be a list of tables, not one table; write [[{dotted(key_path)}]]."
        case kind:
            wanted = _WANTED[kind].format(**context) if kind in _WANTED else details["msg"]
            return key_path, f"must be {wanted}, not {shown(details['input'])}."


def _walk(location: tuple[str | int, ...], schema: type[BaseModel]) -> tuple[KeyPath, type[BaseModel] | None]:
    """The key path of pydantic's `location` without the tags of unions, and the table that its last key stands in."""
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
        annotations = [inner for kind, _ in _members(annotations) for inner in _inside(kind, step)]
    return tuple(key_path), section


def _tags(annotations: list[Any]) -> set[str]:
    return {tag for _, tag in _members(annotations) if tag}


def _members(annotations: list[Any]) -> Iterator[tuple[Any, str | None]]:
    """Every plain type among `annotations`, with its tag where a union has them."""
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


def _inside(kind: Any, step: str | int) -> list[Any]:
    """The type of what lies at `step` in a table, a mapping or a list."""
    if _is_section(kind):
        field = kind.model_fields.get(step)
        return [field.annotation] if field else []
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return [arguments[1]]
    return [arguments[0]] if get_origin(kind) is tuple and isinstance(step, int) else []
