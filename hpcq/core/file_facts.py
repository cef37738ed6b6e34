"""Facts about files that take long to compute, kept in hpcq's cache until the file changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcq.core.errors import StorageError
from hpcq.core.files import file_stamp, write_text
from hpcq.core.paths import cache_folder

_MAX_FILES = 1000
"""Files per fact in the cache; those computed longest ago are removed."""


def remembered(path: Path, find: Callable[[Path], Any], *, name: str, version: str) -> Any:
    """Return what `find` returns for a file, from the cache if the file has not changed since.

    Args:
        path: The file.
        find: Computes the fact; returns a JSON value.
        name: Name of the fact. Facts of one name are in one file of the cache.
        version: Changes whenever `find` could return something else for the same content.

    Raises:
        OSError: The file cannot be read.
    """
    cache = cache_folder() / "facts" / f"{name}.json"
    known = _read(cache, version)
    key, stamp = str(path.resolve()), list(file_stamp(path))
    entry = known.pop(key, None)
    if isinstance(entry, list) and entry[:-1] == stamp:
        return entry[-1]
    found = find(path)
    known[key] = [*stamp, found]
    with contextlib.suppress(StorageError, OSError):  # without a cache, the next call only takes longer
        write_text(cache, json.dumps({"version": version, "files": dict(list(known.items())[-_MAX_FILES:])}))
    return found


def _read(cache: Path, version: str) -> dict[str, Any]:
    """Return the facts by path; an unreadable cache, or one of another version, counts as empty."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("version") != version or not isinstance(content.get("files"), dict):
        return {}
    return dict(content["files"])
