"""Reading a TOML file that a user wrote: every way in which it may fail to be one is a sentence. Knows no keys."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

from hpcq.core.errors import ManifestError
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.source import dotted
from hpcq.manifest.suggestions import did_you_mean

_DIGITS = re.compile(r"[0-9_]{1000,}")
"""A run of digits that is no number of a manifest: Python refuses to read those of more than 4300 (3.11)."""
_POSITION = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")
_TWICE = re.compile(
    r"Cannot overwrite a value"
    r"|Cannot (?:declare|mutate immutable namespace|redefine namespace) (?P<keys>\(.*\))(?: twice)?"
    r"|Duplicate inline table key (?P<key>.*)"
)
"""tomllib's words for a key or a table that comes twice (Python 3.11); the key is not always among them."""


def read_document(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and the content of the TOML file at `path`.

    Raises:
        ManifestError: it is missing, a folder, unreadable, not UTF-8 or not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.toml")] if is_folder(path.parent) else []
        raise ManifestError([f"{path}: there is no such file.{did_you_mean(path.name, beside)}"]) from None
    except IsADirectoryError:
        raise ManifestError([f"{path}: is a folder; name a TOML file."]) from None
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
        raise ManifestError([f"{path}: is nested too deeply to be read."]) from None
    except ValueError:  # int()'s own, which tomllib lets pass
        before = _DIGITS.split(text, maxsplit=1)[0]
        line = before.count("\n") + 1
        raise ManifestError([f"{path}:{line}: holds a number that is too long to be read."]) from None


def _syntax_problem(path: Path, text: str, message: str) -> str:
    position = _POSITION.search(message)
    line = position["line"] if position and position["line"] else str(text.count("\n") + 1)
    reason = _POSITION.sub("", message)
    twice = _TWICE.fullmatch(reason)
    if twice:
        return f"{path}:{line}: {_named_twice(twice)} is given twice."
    return f"{path}:{line}: is not TOML: {reason[0].lower()}{reason[1:]}."


def _named_twice(message: re.Match[str]) -> str:
    """The key that a message names, in Python's notation, as its user would write it."""
    named = message["keys"] or message["key"]
    if named is None:
        return "a key or table"
    keys = ast.literal_eval(named)
    return f"'{dotted(keys if isinstance(keys, tuple) else (keys,))}'"
