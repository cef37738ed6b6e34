"""Completion marker of a staged text: a file next to it with its size and digest, written after the text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hpcq.core.files import digest_of_file, write_text
from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class TextMarker:
    """A completion marker: size in bytes and SHA-256 of the text."""

    size: int
    sha256: str


def write_text_marker(text: Path) -> None:
    """Commit the marker of a text that is complete.

    Raises:
        StorageError: The marker cannot be written.
    """
    marker = TextMarker(size=text.stat().st_size, sha256=digest_of_file(text))
    write_text(_path(text), json.dumps({"schema": 1, **asdict(marker)}, indent=1) + "\n")


def read_text_marker(text: Path) -> TextMarker | None:
    """Return the marker of a text; None: there is none, or it is damaged."""
    try:
        content = json.loads(_path(text).read_text(encoding="utf-8"))
        return TextMarker(size=int(content["size"]), sha256=str(content["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_text_complete(text: Path) -> bool:
    """Return whether a text has a marker and the size in it."""
    marker = read_text_marker(text)
    return marker is not None and text.is_file() and text.stat().st_size == marker.size


def _path(text: Path) -> Path:
    return text.with_name(text.name + ".complete.json")
