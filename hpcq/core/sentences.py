"""Parts of messages that many modules need: the first line of an error, and a list of names."""

from __future__ import annotations

from collections.abc import Iterable

MAX_NAMES = 3
"""Names in a message; the others are only counted."""


def first_line(error: object) -> str:
    """Return the first line of an error's message, without a full stop; without a message, the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def listed(names: Iterable[str]) -> str:
    """Return the first MAX_NAMES different names, separated by commas."""
    return ", ".join(list(dict.fromkeys(names))[:MAX_NAMES])
