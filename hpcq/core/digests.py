"""What identifies the things that a run reads: digests of checkpoints, benchmark items and text.

Knows which files of a folder can change a result; knows nothing of manifests. A file's digest is kept in the cache as
long as the file's size, time of change and inode stay, for hashing a large model takes minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from hpcq.core.cache import cache_folder
from hpcq.core.errors import StorageError
from hpcq.core.files import digest_of_file, write_text

_CHECKPOINT_FILES = ("*.safetensors", "*.bin", "*.json", "tokenizer.model", "*.txt", "*.jinja", "*.py")
_ITEM_FILES = ("*.jsonl",)

_Known = dict[str, tuple[int, int, int, str]]
"""Size, time of change in nanoseconds, inode and digest, by path."""


def digest_of_model(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's weights, configuration, tokenizer and code.

    Raises:
        OSError: a file cannot be read.
    """
    return _digest(path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern))


def digest_of_items(folder: Path) -> str:
    """SHA-256 over names and contents of a task's `<split>.jsonl` files, whatever the number that is evaluated.

    Raises:
        OSError: a file cannot be read.
    """
    return _digest(path for pattern in _ITEM_FILES for path in folder.glob(pattern))


def digest_of_text(path: Path) -> str:
    """SHA-256 of one file.

    Raises:
        OSError: the file cannot be read.
    """
    known = _read_known()
    digest = _digest_of_file(path, known)
    _keep(known)
    return digest


def _digest(paths: Iterable[Path]) -> str:
    known = _read_known()
    total = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        total.update(f"{path.name}\0{_digest_of_file(path, known)}\n".encode())
    _keep(known)
    return total.hexdigest()


def _digest_of_file(path: Path, known: _Known) -> str:
    key, status = str(path.resolve()), path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
    entry = known.get(key)
    if entry is None or entry[:3] != stamp:
        known[key] = (*stamp, digest_of_file(path))
    return known[key][3]


def _cache_file() -> Path:
    return cache_folder() / "digests.json"


def _read_known() -> _Known:
    """What earlier calls found; a cache that cannot be read is an empty one."""
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {
            path: (int(size), int(mtime), int(inode), str(digest))
            for path, (size, mtime, inode, digest) in content.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _keep(known: _Known) -> None:
    """Write the cache if it has grown; a folder that may not be written only costs time."""
    if known != _read_known():
        with contextlib.suppress(StorageError):
            write_text(_cache_file(), json.dumps(known, indent=0, sort_keys=True))
