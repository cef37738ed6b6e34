"""Index of lm-eval's tasks, and of a user's definitions: descriptions of tasks, read without importing lm-eval.

The first line of a file is JSON with the position of each entry; the entries follow. A lookup reads only this line and
one entry, and so takes milliseconds. `make_task_index` makes the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.core import environments
from hpcq.core.files import write_text
from hpcq.core.paths import cache_folder

ENVIRONMENT = "transformers"
"""Environment whose lm-eval is indexed; all environments of hpcq have the same version of it."""

_SCHEMA = 5
"""Version of the files; increase it when `hpcq.evaluate.task_index_program` describes tasks in another way."""

Entry = Mapping[str, Any]
"""Fields of `hpcq.catalog.tasks.TaskInfo`, except the name."""


def index_file() -> Path:
    """Return the path of the index of lm-eval's own tasks. The environment's name depends on its pins."""
    return _folder() / f"{_stem()}.jsonl"


def definitions_file(digest: str) -> Path:
    """Return the path of the index of a user's definitions with this digest (`digest_of_definitions`)."""
    return _folder() / f"{_stem()}-{digest}.jsonl"


def _stem() -> str:
    """Return the common part of the names: versions of hpcq with other descriptions use other files."""
    return f"{environments.folder(ENVIRONMENT).name}-v{_SCHEMA}"


def _folder() -> Path:
    return cache_folder() / "task-index"


def has_package(name: str) -> bool:
    """Return whether a module that a definition imports was installed in the environment after it was indexed."""
    library = environments.folder(ENVIRONMENT) / "lib"
    return any(any(library.glob(f"python*/site-packages/{file}")) for file in (name, f"{name}.py"))


def write_index(path: Path, entries: Iterable[tuple[str, Entry]]) -> None:
    """Write an index file.

    Raises:
        StorageError: The cache cannot be written.
    """
    positions: dict[str, tuple[int, int]] = {}
    lines = []
    begin = 0
    for name, entry in entries:
        line = json.dumps(entry, separators=(",", ":")) + "\n"  # ASCII: a character is a byte
        positions[name] = (begin, len(line))
        lines.append(line)
        begin += len(line)
    header = json.dumps({"schema": _SCHEMA, "positions": positions}, separators=(",", ":"))
    write_text(path, "".join([header, "\n", *lines]))


def indexed_names(path: Path) -> tuple[str, ...] | None:
    """Return the names in an index; None: the file does not exist, or is damaged."""
    header = _header(path)
    return None if header is None else tuple(header[1])


def find_entry(path: Path, name: str) -> dict[str, Any] | None:
    """Return the entry of a name; None: the index does not have it, does not exist, or is damaged."""
    header = _header(path)
    if header is None or name not in header[1]:
        return None
    begin, length = header[1][name]
    try:
        with path.open("rb") as file:
            file.seek(header[0] + begin)
            entry: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError):
        return None
    return entry


def _header(path: Path) -> tuple[int, dict[str, tuple[int, int]]] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _read_header(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _read_header(path: Path, _modified_ns: int, _size: int) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Return where the entries begin, and their positions."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        document = json.loads(line)
        return (len(line), document["positions"]) if document["schema"] == _SCHEMA else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
