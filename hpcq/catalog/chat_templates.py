"""Chat templates in the folder of a checkpoint, read without transformers.

The files are those that transformers (5.17) reads: chat_template.jinja, additional_chat_templates/NAME.jinja, and the
key chat_template of tokenizer_config.json, whose templates the files replace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

DEFAULT_TEMPLATE = "default"
"""Name of the only template of a checkpoint, and of the one that is used if none is named."""

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"


def read_chat_templates(folder: Path) -> Mapping[str, str] | None:
    """Return the chat templates of a checkpoint by name; empty: it has none; None: its files are missing or damaged."""
    try:
        files = {path.stem: path.read_text(encoding="utf-8") for path in sorted((folder / _FOLDER).glob("*.jinja"))}
        if (folder / _TEMPLATE_FILE).is_file():
            files[DEFAULT_TEMPLATE] = (folder / _TEMPLATE_FILE).read_text(encoding="utf-8")
        config = folder / _TOKENIZER_CONFIG
        if not config.is_file():
            return files or None
        document = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict):
        return None
    return {**_named(document.get("chat_template")), **files}


def _named(value: object) -> dict[str, str]:
    """Return the templates in tokenizer_config.json: a text, or a list of tables with name and template."""
    if isinstance(value, str):
        return {DEFAULT_TEMPLATE: value}
    rows = value if isinstance(value, list) else []
    return {
        str(row["name"]): str(row["template"])
        for row in rows
        if isinstance(row, dict) and {"name", "template"} <= row.keys()
    }
