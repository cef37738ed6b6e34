"""Completion marker of a snapshot: a JSON file with the names, sizes and digests of its files (`HubCache.marker`)."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

from hpcq.core.frozen import dataclass


class Reference(StrEnum):
    """Source of the digests with which a snapshot's files were compared.

    Attributes:
        HUB: The hub's file list.
        CACHE: File names in the cache, where the hub's client names contents by their digests. The hub could not be
            reached.
    """

    HUB = "hub"
    CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class MarkedFile:
    """A file that a completion marker lists: path in the snapshot, size in bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SnapshotMarker:
    """A completion marker.

    Attributes:
        files: The files.
        digest: What `hpcq.core.digests.digest_of_model` returns for a folder with these files.
        compared_with: What the digests of the files were compared with.
    """

    files: tuple[MarkedFile, ...]
    digest: str
    compared_with: Reference

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read_snapshot_marker(path: Path) -> SnapshotMarker:
    """Return a completion marker.

    Raises:
        OSError: It cannot be read; FileNotFoundError: there is none.
        ValueError: It is damaged.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return SnapshotMarker(
            files=tuple(MarkedFile(**file) for file in content["files"]),
            digest=str(content["digest"]),
            compared_with=Reference(content["compared_with"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: the completion marker is damaged.") from error
