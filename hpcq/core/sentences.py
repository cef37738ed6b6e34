"""Parts of messages that many modules need: the first line of an error, a list of names, text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAMES = 3
"""Names in a message; the others are only counted."""


_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -~])?")
"""Control sequences of ECMA-48: colors, cursor movements, titles of windows."""

_UNPRINTABLE = re.compile("[^\n\t\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\U0010ffff]")
"""Control characters, and those that change the direction of text."""


def terminal_text(text: str) -> str:
    """Return output of a job without what a terminal would obey; a carriage return begins a new line."""
    lines = _ESCAPE_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", lines)


def one_line(text: str) -> str:
    """Return `text` without line breaks and control characters, which names of models and files can contain."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def first_line(error: object) -> str:
    """Return the first line of an error's message, without a full stop; without a message, the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def listed(names: Iterable[str]) -> str:
    """Return the first MAX_NAMES different names, separated by commas."""
    return ", ".join(list(dict.fromkeys(names))[:MAX_NAMES])
