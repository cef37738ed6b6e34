"""The only ways in which hpcq creates a file or a folder that must survive: beside, fsync, rename, fsync of the folder.

Knows nothing of what is written. Works where rename is atomic and nothing else is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpcq.errors import StorageFault

_CURES = {
    errno.ENOSPC: "the disk is full: free some room and type the command again",
    errno.EDQUOT: "your quota is used up: free some room and type the command again",
    errno.EFBIG: "the file is larger than the file system or your limit (ulimit -f) allows",
    errno.EACCES: "permission denied: choose a folder that you may write",
    errno.EPERM: "permission denied: choose a folder that you may write",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ESTALE: "the network file system lost the file: type the command again",
    errno.EIO: "the device reported an input/output error",
    errno.EEXIST: "a file stands where a folder should be",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
}
_TEMPORARY_SUFFIX = ".part"


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """One sentence for what the file system refused: the path, the cure where one is known, and the system's words."""
    place = str(error.filename or path or "the file system")
    if path and place.endswith(_TEMPORARY_SUFFIX):
        place = str(path)
    cure = _CURES.get(error.errno or 0)
    return f"{place}: {cure} ({error.strerror})." if cure else f"{place}: {error.strerror or error}."


@contextlib.contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into one sentence that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CURES:
            raise
        raise StorageFault(describe_os_error(error, path)) from error


def _fsync(path: Path) -> None:
    """Make durable what a file holds, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each name durable in the folder above it."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _fsync(new.parent)


def temporary_beside(path: Path) -> Path:
    """A name in `path`'s folder that nobody else uses: hidden, and told from a committed file by its '.part'."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def committed_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; when the block ends well the file is durable under `path`, else it is gone.

    Raises:
        StorageFault: `path` is a folder; no room, no permission, read-only or stale.
    """
    with storage_faults(path):
        if path.is_dir():
            raise StorageFault(f"{path}: is a folder; name a file.")
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def committed_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well it is durable as `path`, else it is gone.

    If `path` came to exist in the meantime (another worker made the same thing) the one that is there stays.

    Raises:
        StorageFault: no room, no permission, read-only or stale.
    """
    with storage_faults(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        temporary.mkdir()
        try:
            yield temporary
            for item in (*temporary.rglob("*"), temporary):
                _fsync(item)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Commit `text` as UTF-8 under `path`."""
    with committed_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
