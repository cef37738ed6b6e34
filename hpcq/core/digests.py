"""Digests of what a run reads: checkpoints, benchmark items and text.

Only files that can change a result are hashed. Hashing a large model takes minutes, so a file's digest is cached until
its size, modification time or inode changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from hpcq.core.errors import StorageError
from hpcq.core.files import digest_of_file, write_text
from hpcq.core.paths import cache_folder

_CHECKPOINT_FILES = ("*.safetensors", "*.bin", "*.json", "tokenizer.model", "*.txt", "*.jinja", "*.py")
_ITEM_FILES = ("*.jsonl",)

_Cache = dict[str, tuple[int, int, int, str]]
"""Size in bytes, modification time in nanoseconds, inode and digest, by path."""


def digest_of_model(folder: Path) -> str:
    """Return the SHA-256 over names and contents of a checkpoint's weights, configuration, tokenizer and code.

    Raises:
        OSError: A file cannot be read.
    """
    return _digest(path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern))


def digest_of_items(folder: Path) -> str:
    """Return the SHA-256 over names and contents of all `<split>.jsonl` files of a task, also if a limit is set.

    Raises:
        OSError: A file cannot be read.
    """
    return _digest(path for pattern in _ITEM_FILES for path in folder.glob(pattern))


def digest_of_text(path: Path) -> str:
    """Return the SHA-256 of one file.

    Raises:
        OSError: The file cannot be read.
    """
    known = _read_cache()
    digest = _digest_of_file(path, known)
    _write_cache(known)
    return digest


def _digest(paths: Iterable[Path]) -> str:
    known = _read_cache()
    total = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        total.update(f"{path.name}\0{_digest_of_file(path, known)}\n".encode())
    _write_cache(known)
    return total.hexdigest()


def _digest_of_file(path: Path, known: _Cache) -> str:
    key, status = str(path.resolve()), path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
    entry = known.get(key)
    if entry is None or entry[:3] != stamp:
        known[key] = (*stamp, digest_of_file(path))
    return known[key][3]


def _cache_file() -> Path:
    return cache_folder() / "digests.json"


def _read_cache() -> _Cache:
    """Return the cached digests; an unreadable cache counts as empty."""
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {
            path: (int(size), int(mtime), int(inode), str(digest))
            for path, (size, mtime, inode, digest) in content.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_cache(known: _Cache) -> None:
    """Write the cache if it changed. If the folder is not writable, later calls only take longer."""
    if known != _read_cache():
        with contextlib.suppress(StorageError):
            write_text(_cache_file(), json.dumps(known, indent=0, sort_keys=True))
