"""File system queries that never raise: a path that cannot be accessed counts as missing.

pathlib's own methods raise PermissionError for a path below a folder without execute permission, and OSError for a name
that is too long (Python 3.11).
"""

from __future__ import annotations

import os
from pathlib import Path


def path_exists(path: Path) -> bool:
    """Return whether `path` exists."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Return whether `path` is a file."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def unreadable_part(path: Path) -> Path | None:
    """Return the first existing part of `path` that this user may not access; None if there is none."""
    for part in (*reversed(path.parents), path):
        permission = os.R_OK if part == path else os.X_OK
        if path_exists(part) and not os.access(part, permission):
            return part
    return None
