"""The words for a name that nothing has: what is allowed, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_SHOWN = 20


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' with the nearest of `known`, or the first that begins so, or nothing. Case does not matter."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    close = close or [other for other in by_lower if name and other.startswith(name.lower())]
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not among `known`."""
    names = tuple(known)
    listed = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"unknown {what} '{name}'; known are {listed}.{did_you_mean(name, names)}"
