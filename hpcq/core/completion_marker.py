"""Completion marker of an evaluation: a file next to its segments, written when every request is answered.

The markers of two attempts differ, so that they can be distinguished without clocks.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hpcq.core.files import storage_errors, write_text
from hpcq.core.frozen import dataclass
from hpcq.core.paths import COMPLETION_FILE


@dataclass(frozen=True, kw_only=True)
class CompletionMarker:
    """A completion marker.

    Attributes:
        address: Content address of the responses.
        digest: First 16 hexadecimal digits of the SHA-256 of the marker file.
        also: Content addresses of the same responses to fewer tasks.
    """

    address: str
    digest: str
    also: tuple[str, ...] = ()

    def is_for(self, address: str | None) -> bool:
        """Return whether the responses with this address are complete."""
        return address in (self.address, *self.also)


def write_completion_marker(folder: Path, *, address: str, requests: int, attempt: int) -> None:
    """Commit the marker of the unit whose segments are in `folder`."""
    content = {"schema": 1, "requests": requests, "address": address, "attempt": attempt}
    write_text(folder / COMPLETION_FILE, json.dumps(content) + "\n")


def extend_completion_marker(folder: Path, *, earlier: str, address: str) -> None:
    """Record in the marker for the address `earlier` that `address`, a part of the same responses, is complete."""
    marker = read_completion_marker(folder)
    if marker is not None and marker.is_for(earlier) and not marker.is_for(address):
        document = json.loads((folder / COMPLETION_FILE).read_bytes())
        write_text(folder / COMPLETION_FILE, json.dumps({**document, "also": [*marker.also, address]}) + "\n")


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
    digest = hashlib.sha256(content).hexdigest()[:16]
    return CompletionMarker(
        address=str(document["address"]), digest=digest, also=tuple(map(str, document.get("also", ())))
    )
