"""TOML files: read one, with a message for every error, and find the line of every key, which tomllib lacks."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

from hpcq.core.errors import ManifestError
from hpcq.core.files import read_regular
from hpcq.manifest.error_messages import did_you_mean
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.value_origin import KeyPath, dotted_key

_DIGITS = re.compile(r"[0-9_]{1000,}")
"""Too many digits for any number of a manifest. Python raises ValueError above 4300 (3.11)."""
_POSITION = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")
_DUPLICATE = re.compile(
    r"Cannot overwrite a value"
    r"|Cannot (?:declare|mutate immutable namespace|redefine namespace) (?P<keys>\(.*\))(?: twice)?"
    r"|Duplicate inline table key (?P<key>.*)"
)
"""tomllib's messages for a duplicate key or table (Python 3.11); not all of them contain the key."""


def read_document(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text and the content of the TOML file `path`.

    Raises:
        ManifestError: the file is missing, a folder, unreadable, not UTF-8 or not valid TOML.
    """
    try:
        text = read_regular(path).decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        neighbours = [other.name for other in path.parent.glob("*.toml")] if is_folder(path.parent) else []
        raise ManifestError([f"{path}: file not found.{did_you_mean(path.name, neighbours)}"]) from None
    except IsADirectoryError:
        raise ManifestError([f"{path}: is a folder; give a TOML file."]) from None
    except UnicodeDecodeError as error:
        raise ManifestError([f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8."]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ManifestError([f"{path}: cannot be read ({reason})."]) from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError([_syntax_problem(path, text, str(error))]) from None
    except RecursionError:
        raise ManifestError([f"{path}: is nested too deeply."]) from None
    except ValueError:  # int() raises ValueError, which tomllib does not convert
        before = _DIGITS.split(text, maxsplit=1)[0]
        line = before.count("\n") + 1
        raise ManifestError([f"{path}:{line}: contains a number with too many digits."]) from None


def _syntax_problem(path: Path, text: str, message: str) -> str:
    position = _POSITION.search(message)
    line = position["line"] if position and position["line"] else str(text.count("\n") + 1)
    reason = _POSITION.sub("", message)
    duplicate = _DUPLICATE.fullmatch(reason)
    if duplicate:
        return f"{path}:{line}: {_duplicate_name(duplicate)} is defined twice."
    return f"{path}:{line}: is not valid TOML: {reason[0].lower()}{reason[1:]}."


def _duplicate_name(message: re.Match[str]) -> str:
    """Return the key in a tomllib message (a Python literal) in the user's notation."""
    literal = message["keys"] or message["key"]
    if literal is None:
        return "a key or table"
    keys = ast.literal_eval(literal)
    return f"'{dotted_key(keys if isinstance(keys, tuple) else (keys,))}'"


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


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of every table, key and list element in `text`, which must be valid TOML."""
    return _LineScanner(text).lines


class _LineScanner:
    """One pass over a document that tomllib has accepted. Scans the structure only, and does not parse values."""

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
        """Scan a table header. Each [[array]] header adds an element; later keys belong to the last one."""
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
        """Scan a bare, quoted or dotted key, up to the '=' or ']' after it."""
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
            self._skip_comma()
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._skip(_BLANK) and self.text[self.at] != "}":
            self._pair(path)
            self._skip_comma()
        self.at += 1

    def _skip_comma(self) -> None:
        self._skip(_BLANK)
        if self.text.startswith(",", self.at):
            self.at += 1

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Skip the match of `pattern` at this position. Return False at the end of the document."""
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def _line_here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line
