"""Questions to the file system that always have an answer: what cannot be looked at is not there. Knows no manifest.

pathlib's own raise PermissionError for a path below a folder that may not be entered, and OSError for a name too long
(Python 3.11).
"""

from __future__ import annotations

import os
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether there is a file or folder."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def forbidden_part(path: Path) -> Path | None:
    """The first folder on the way to `path`, or `path` itself, that exists and that this user may not read."""
    for part in (*reversed(path.parents), path):
        wanted = os.R_OK if part == path else os.X_OK
        if is_there(part) and not os.access(part, wanted):
            return part
    return None
