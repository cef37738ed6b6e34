"""Reading a TOML file that a user wrote: every way in which it may fail to be one is a sentence. Knows no keys."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hpcq.errors import ManifestError
from hpcq.manifest.disk import is_folder
from hpcq.manifest.suggestions import did_you_mean

_POSITION = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")


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


def _syntax_problem(path: Path, text: str, message: str) -> str:
    position = _POSITION.search(message)
    line = position["line"] if position and position["line"] else str(text.count("\n") + 1)
    reason = _POSITION.sub("", message)
    return f"{path}:{line}: is not TOML: {reason[0].lower()}{reason[1:]}."
