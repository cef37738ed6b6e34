"""`-O key=value`: values that replace those of a TOML document, by dotted keys. Knows no key's meaning."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcq.manifest.source import KeyPath


@dataclass(frozen=True, kw_only=True)
class Override:
    """One option: its text, where it points and what it puts there."""

    text: str
    key_path: KeyPath
    value: Any


class OverrideProblem(ValueError):
    """An option that cannot be applied; the message is a whole sentence."""


def apply_override(document: dict[str, Any], text: str) -> Override:
    """Put the value of `text` ('key=value') into `document`; tables that are not there are made, list elements are not.

    Raises:
        OverrideProblem: no key or no '=', broken TOML, or a key that leads through a value or past a list's end.
    """
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise OverrideProblem("an option is written key=value, with a dotted key such as evaluate.batch_size.")
    value = _value(raw.strip())
    here: Any = document
    key_path: KeyPath = ()
    for position, part in enumerate(parts):
        step = _step(here, part, key_path)
        key_path = (*key_path, step)
        if position == len(parts) - 1:
            here[step] = value
        else:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
    return Override(text=text, key_path=key_path, value=value)


def _step(here: Any, part: str, before: Sequence[str | int]) -> str | int:
    """`part` as a key of the table or an index of the list `here`."""
    name = ".".join(str(step) for step in before)
    if isinstance(here, dict):
        return part
    if not isinstance(here, list):
        raise OverrideProblem(f"{name} is a value and has no key '{part}'.")
    if part not in (str(index) for index in range(len(here))):
        counted = f"0 to {len(here) - 1}" if here else "none, for it is empty"
        raise OverrideProblem(f"{name} is a list; its elements are {counted}, and '{part}' is not one of them.")
    return int(part)


def _value(raw: str) -> Any:
    """`raw` as a TOML value; what is no TOML and does not begin like any is text as it stands."""
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError as error:
        if raw[:1] in ("[", "{", '"', "'"):
            raise OverrideProblem(f"{raw} is not a TOML value ({error}).") from error
        return raw
    except (ValueError, RecursionError):  # int()'s own, which tomllib lets pass
        raise OverrideProblem("the value is a number too long, or a list too deep, to be read.") from None
    return parsed["value"] if len(parsed) == 1 else raw
