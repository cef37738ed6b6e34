"""Origin of each value of a manifest or profile: a line of the file, or a `-O` override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from hpcq.core.frozen import dataclass

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root of a document: ('models', 0, 'id')."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The file and the overrides that a document was read from.

    Attributes:
        path: the file as the user gave it; None if there is none.
        lines: line number of each key path, from 1.
        overrides: 'key=value' after -O, by the key path that it sets.
    """

    path: Path | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The file's folder as the user gave it; the working directory if there is no file."""
        return Path() if self.path is None else self.path.parent

    def location(self, key_path: KeyPath) -> str:
        """Return 'file:line' of the value at `key_path` or of its nearest parent; '-O …' if an override set it."""
        return self._line_and_location(key_path)[1]

    def line(self, key_path: KeyPath) -> int:
        """Return the line of that location; 0 for an override or a key that the file does not contain."""
        return self._line_and_location(key_path)[0]

    def _line_and_location(self, key_path: KeyPath) -> tuple[int, str]:
        file = "manifest" if self.path is None else str(self.path)
        for path, text in self.overrides.items():
            if key_path[: len(path)] == path:
                return 0, f"-O {text}"
        for length in range(len(key_path), 0, -1):
            part = key_path[:length]
            if part in self.lines:
                return self.lines[part], f"{file}:{self.lines[part]}"
            override = next((text for path, text in self.overrides.items() if path[:length] == part), None)
            if override is not None:
                return 0, f"-O {override}"
        return 0, file

    def message(self, key_path: KeyPath, sentence: str) -> str:
        """Return 'location: key: sentence'."""
        return ": ".join(part for part in (self.location(key_path), dotted_key(key_path), sentence) if part)


def dotted_key(key_path: KeyPath) -> str:
    """Return the key as written after -O. For an element of a list of values, return the key of the list."""
    named = key_path[:-1] if len(key_path) > 1 and isinstance(key_path[-1], int) else key_path
    return ".".join(str(part) for part in named)
