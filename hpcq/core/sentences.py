"""Parts of messages that many modules need: the first line of an error, a list of names, text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAMES = 3
"""Names in a message; the others are only counted."""


_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -~])?")
"""Control sequences of ECMA-48: colors, cursor movements, titles of windows."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the direction of text."""


def terminal_text(text: str) -> str:
    """Return output of a job without what a terminal would obey; a carriage return begins a new line."""
    lines = _ESCAPE_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", lines)


_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters without a glyph that change the direction of text (Unicode Bidirectional Algorithm, 2)."""


def one_line(text: str) -> str:
    """Return `text` without line breaks and control characters, which names of models and files can contain.

    Marks that change the direction of text are shown by their codes.
    """
    text = _DIRECTION.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def first_line(error: object) -> str:
    """Return the first line of an error's message, without a full stop; without a message, the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def listed(names: Iterable[str]) -> str:
    """Return the first MAX_NAMES different names, separated by commas."""
    return ", ".join(list(dict.fromkeys(names))[:MAX_NAMES])
