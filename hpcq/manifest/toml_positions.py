"""The line of every key and list element in a TOML document, which tomllib does not tell.

Knows TOML's shape, not its values: it is given documents that tomllib has accepted, and trusts them to be well-formed.
"""

from __future__ import annotations

import re
import tomllib

from hpcq.manifest.source import KeyPath

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
# A multi-line string may end in one or two quotes of its own before the three that close it.
_STRING = re.compile(
    r'"""(?:[^\\"]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)


def locate(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every table, key and list element in `text`, by key path."""
    return _Walk(text).lines


class _Walk:
    """One pass over a document."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self._counted_to, self._line = 0, 1
        self._tables: dict[KeyPath, int] = {}
        self._document()

    def _document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        """A table's header; elements of an array of tables count up, and keys below one mean its last element."""
        line, is_array = self._line_here(), self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        keys = self._keys()
        self.at += 2 if is_array else 1
        path: KeyPath = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if is_array and position == len(keys) - 1:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
                self.lines.setdefault(path, line)
        return path

    def _pair(self, table: KeyPath) -> None:
        line, path = self._line_here(), table
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at += 1
        self._value(path)

    def _keys(self) -> list[str]:
        """A key, dotted or not, up to the '=' or ']' after it."""
        keys = []
        while True:
            self._skip(_SPACE)
            quoted = _STRING.match(self.text, self.at)
            bare = _BARE_KEY.match(self.text, self.at)
            if quoted:
                keys.append(str(tomllib.loads(f"key = {quoted[0]}")["key"]))
                self.at = quoted.end()
            elif bare:
                keys.append(bare[0])
                self.at = bare.end()
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return keys
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        opening = self.text[self.at]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            self._skip(_STRING if opening in "\"'" else _BARE_VALUE)

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self._skip(_BLANK) and self.text[self.at] != "]":
            self.lines[*path, index] = self._line_here()
            self._value((*path, index))
            index += 1
            self._past_comma()
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._skip(_BLANK) and self.text[self.at] != "}":
            self._pair(path)
            self._past_comma()
        self.at += 1

    def _past_comma(self) -> None:
        self._skip(_BLANK)
        if self.text.startswith(",", self.at):
            self.at += 1

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Move past what `pattern` matches here; False at the end of the document."""
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line
