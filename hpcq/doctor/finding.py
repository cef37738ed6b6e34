"""Result of one check of `hpcq doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from hpcq.core.errors import HpcqError
from hpcq.core.frozen import dataclass

MANIFEST = "manifest"
"""Section of the problems of a manifest that cannot be planned."""


class Level(StrEnum):
    """Severity of a finding.

    Attributes:
        OK: Nothing to do.
        WARNING: Runs work, but slower, or with less safety.
        FAIL: Runs cannot work.
    """

    OK = "ok"
    WARNING = "warning"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of a check.

    Attributes:
        section: What the check is about: machine, storage, environments, slurm, inputs, manifest.
        level: Its severity.
        text: The fact, as a sentence.
        fix: What to do; empty if nothing.
    """

    section: str
    level: Level
    text: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the row of `doctor --json`."""
        return asdict(self)


def ok(section: str, text: str) -> Finding:
    """Return a finding of the level OK."""
    return Finding(section=section, level=Level.OK, text=text)


def warning(section: str, text: str, fix: str) -> Finding:
    """Return a warning."""
    return Finding(section=section, level=Level.WARNING, text=text, fix=fix)


def fail(section: str, text: str, fix: str = "") -> Finding:
    """Return a failure. The messages of errors contain their fix."""
    return Finding(section=section, level=Level.FAIL, text=text, fix=fix)


def checked(section: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; an error that it raises is a failure, and ends only this check."""
    try:
        yield from check()
    except HpcqError as error:
        yield from (fail(section, line) for line in str(error).splitlines())
