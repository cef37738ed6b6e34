"""Completion marker of an evaluation: a file next to its segments, written when every request is answered.

The markers of two attempts differ, so that they can be distinguished without clocks.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hpcq.core.files import storage_errors, write_text
from hpcq.core.paths import COMPLETION_FILE


@dataclass(frozen=True, kw_only=True)
class CompletionMarker:
    """A completion marker.

    Attributes:
        address: Content address of the responses.
        digest: First 16 hexadecimal digits of the SHA-256 of the marker file.
    """

    address: str
    digest: str


def write_completion_marker(folder: Path, *, address: str, requests: int, attempt: int) -> None:
    """Commit the marker of the unit whose segments are in `folder`."""
    content = {"schema": 1, "requests": requests, "address": address, "attempt": attempt}
    write_text(folder / COMPLETION_FILE, json.dumps(content) + "\n")


def read_completion_marker(folder: Path) -> CompletionMarker | None:
    """Return the marker of the unit whose segments are in `folder`; None if there is none or it is malformed.

    Raises:
        StorageError: The file cannot be read.
    """
    path = folder / COMPLETION_FILE
    try:
        with storage_errors(path):
            content = path.read_bytes()
        document = json.loads(content)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(document, dict) or "address" not in document:
        return None
    return CompletionMarker(address=str(document["address"]), digest=hashlib.sha256(content).hexdigest()[:16])
