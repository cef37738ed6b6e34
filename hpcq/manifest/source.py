"""Where a manifest's values came from, so that a problem can name its place: a line of the file, or an option.

Knows key paths, lines and options; knows nothing of what the keys mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root of a document: ('models', 0, 'id')."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The file as its user named it, the line of every key path in it, and the options that replaced values.

    options: the text after -O, by the key path that it sets.
    """

    path: Path | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    options: Mapping[KeyPath, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The file's folder as it was named; without a file, the working directory."""
        return Path() if self.path is None else self.path.parent

    def place(self, key_path: KeyPath) -> str:
        """'file:line' of the value at `key_path` or of the nearest table around it; '-O …' where an option put it."""
        return self._line_and_place(key_path)[1]

    def line(self, key_path: KeyPath) -> int:
        """The line of that place; 0 for an option, and where the file has nothing like it."""
        return self._line_and_place(key_path)[0]

    def _line_and_place(self, key_path: KeyPath) -> tuple[int, str]:
        file = "manifest" if self.path is None else str(self.path)
        for path, text in self.options.items():
            if key_path[: len(path)] == path:
                return 0, f"-O {text}"
        for length in range(len(key_path), 0, -1):
            part = key_path[:length]
            if part in self.lines:
                return self.lines[part], f"{file}:{self.lines[part]}"
            option = next((text for path, text in self.options.items() if path[:length] == part), None)
            if option is not None:
                return 0, f"-O {option}"
        return 0, file

    def problem(self, key_path: KeyPath, sentence: str) -> str:
        """One line for the user: place, key and what is wrong."""
        return ": ".join(part for part in (self.place(key_path), dotted(key_path), sentence) if part)


def dotted(key_path: KeyPath) -> str:
    """The key as an option would name it; an element of a list of values goes by the list's name."""
    named = key_path[:-1] if len(key_path) > 1 and isinstance(key_path[-1], int) else key_path
    return ".".join(str(part) for part in named)
