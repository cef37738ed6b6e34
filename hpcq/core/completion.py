"""A worker's word that every request of its unit is answered and committed: one small file beside the unit's segments.

Knows the file alone. Each attempt's word differs from the one before it, so that they are told apart without clocks.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hpcq.core.files import storage_faults, write_text
from hpcq.core.paths import COMPLETE


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What is told. address: of the responses. digest: of the word itself."""

    address: str
    digest: str


def write_completion(folder: Path, *, address: str, requests: int, attempt: int) -> None:
    """Commit the word for the unit of `folder`."""
    told = {"schema": 1, "requests": requests, "address": address, "attempt": attempt}
    write_text(folder / COMPLETE, json.dumps(told) + "\n")


def read_completion(folder: Path) -> Completion | None:
    """The word for the unit of `folder`; None where there is none, or none that can be understood.

    Raises:
        StorageError: the file system refused to tell.
    """
    path = folder / COMPLETE
    try:
        with storage_faults(path):
            content = path.read_bytes()
        told = json.loads(content)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(told, dict) or "address" not in told:
        return None
    return Completion(address=str(told["address"]), digest=hashlib.sha256(content).hexdigest()[:16])
