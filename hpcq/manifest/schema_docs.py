"""The reference of every key, as Markdown, from the schema itself: what docs/manifest.md and docs/cluster.md must hold.

Knows JSON schema as pydantic writes it; knows no key by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_Schema = dict[str, Any]

_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def reference(schema: type[BaseModel]) -> str:
    """A heading and a table of keys for every table of `schema`, nested ones after those that they stand in."""
    document = schema.model_json_schema()
    return "\n".join(_section((), "", document, document["$defs"]))


def _section(path: tuple[str, ...], heading: str, section: _Schema, definitions: _Schema) -> Iterator[str]:
    keys: dict[str, _Schema] = section["properties"]
    tables = {key: _table_within(field) for key, field in keys.items()}
    rows = [_row(key, field, section) for key, field in keys.items() if tables[key] is None]
    if heading:
        yield from (f"### `{heading}`", "", section["description"], "")
    if rows:
        yield from ("| key | value | default | meaning |", "|---|---|---|---|", *rows, "")
    for key, table in tables.items():
        if table is not None:
            name, kind = table
            inner = (*path, key, "NAME") if kind == "mapping" else (*path, key)
            dotted = ".".join(inner)
            heading = f"[[{dotted}]]" if kind == "list" else f"[{dotted}]"
            yield from _section(inner, heading, definitions[name], definitions)


def _table_within(field: _Schema) -> tuple[str, str] | None:
    """The definition of the table or tables that a key holds, and whether one, a list or a mapping; None: values."""
    kinds = {"table": field, "list": field.get("items"), "mapping": field.get("additionalProperties")}
    optional = _choices(field)
    if len(optional) == 1:
        return _table_within(optional[0])
    for kind, inner in kinds.items():
        if isinstance(inner, dict) and "$ref" in inner:
            return inner["$ref"].rsplit("/", 1)[1], kind
    return None


def _choices(field: _Schema) -> list[_Schema]:
    choices: list[_Schema] = field.get("anyOf") or field.get("oneOf") or []
    return [choice for choice in choices if choice.get("type") != "null"]


def _row(key: str, field: _Schema, section: _Schema) -> str:
    default = field.get("default")
    if key in section.get("required", ()):
        shown = "required"
    else:
        shown = "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
    return f"| `{key}` | {_kind(field)} | {shown} | {field['description']} |"


def _kind(field: _Schema) -> str:
    """What may stand there, in words."""
    choices = _choices(field)
    if choices:
        return " or ".join(_kind(choice) for choice in choices)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}"
    if field.get("type") == "object":
        return "table of values"
    if "pattern" in field:
        return "SHA-256"
    bounds = [f"{sign} {field[bound]}" for bound, sign in _BOUNDS if bound in field]
    return " ".join([_KINDS.get(field.get("type", ""), "table"), *bounds])
