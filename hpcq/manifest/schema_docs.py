"""Generate the Markdown reference of all keys from a schema, for docs/manifest.md and docs/cluster.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_Schema = dict[str, Any]

_TYPE_NAMES = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean"}
_BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def reference(schema: type[BaseModel]) -> str:
    """Return a heading and a table of keys for every table of `schema`; nested tables follow their parent."""
    document = schema.model_json_schema()
    return "\n".join(_section((), "", document, document["$defs"]))


def _section(path: tuple[str, ...], heading: str, section: _Schema, definitions: _Schema) -> Iterator[str]:
    keys: dict[str, _Schema] = section["properties"]
    tables = {key: _nested_table(field) for key, field in keys.items()}
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


def _nested_table(field: _Schema) -> tuple[str, str] | None:
    """Return the definition of a key's table(s), and 'table', 'list' or 'mapping'; None for plain values."""
    kinds = {"table": field, "list": field.get("items"), "mapping": field.get("additionalProperties")}
    optional = _choices(field)
    if len(optional) == 1:
        return _nested_table(optional[0])
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
        default_text = "required"
    else:
        default_text = "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
    return f"| `{key}` | {_type_name(field)} | {default_text} | {field['description']} |"


def _type_name(field: _Schema) -> str:
    """Return the allowed type or values, in words."""
    choices = _choices(field)
    if choices:
        return " or ".join(_type_name(choice) for choice in choices)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type_name(field['items'])}"
    if field.get("type") == "object":
        return "table of values"
    if "pattern" in field:
        return "SHA-256"
    bounds = [f"{sign} {field[bound]}" for bound, sign in _BOUNDS if bound in field]
    return " ".join([_TYPE_NAMES.get(field.get("type", ""), "table"), *bounds])
