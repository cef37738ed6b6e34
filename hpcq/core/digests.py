"""Digests of what a run reads: checkpoints, benchmark items and text.

Only files that can change a result are hashed. Hashing a large model takes minutes, so a file's digest is cached until
its size, modification time or inode changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from hpcq.core.checkpoint_files import files_in, relevant_files
from hpcq.core.errors import StorageError
from hpcq.core.files import digest_of_file, file_stamp, write_text
from hpcq.core.paths import cache_folder

_ITEM_FILES = ("*.jsonl",)

_Cache = dict[str, tuple[int, int, int, str]]
"""Size in bytes, modification time in nanoseconds, inode and digest, by path."""


def digest_of_model(folder: Path, *, ignored: Container[str] = ()) -> str:
    """Return the SHA-256 over names and contents of a checkpoint's weights, configuration, tokenizer and code.

    Args:
        folder: Folder of the checkpoint.
        ignored: Names of files that do not count.

    Raises:
        OSError: A file cannot be read.
    """
    total = _digest(folder, _checkpoint_files(folder, ignored))
    known = _read_cache()
    known[_folder_key(folder)] = (0, 0, 0, total)
    _write_cache(known)
    return total


def digest_of_model_files(digests: Mapping[str, str]) -> str:
    """Return what `digest_of_model` returns for a folder with these files.

    Args:
        digests: SHA-256 of each file, by its path in the folder.
    """
    return _total((name, digests[name]) for name in relevant_files(digests))


def known_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file from the cache; None if the cache has none, or the file has changed since."""
    return _known(path, _read_cache())


def remember_digest(path: Path, digest: str) -> None:
    """Add the SHA-256 of a file to the cache, so that the other functions need not read the file.

    Raises:
        OSError: The file does not exist.
    """
    known = _read_cache()
    known[str(path.resolve())] = (*file_stamp(path), digest)
    _write_cache(known)


def rename_in_cache(before: Path, after: Path) -> None:
    """Record that the folder `before`, whose digest is in the cache, is now named `after`.

    Renaming changes no size, modification time or inode of a file.
    """
    known = _read_cache()
    old, new = f"{before.resolve()}/", f"{after.resolve()}/"
    for path in [path for path in known if path.startswith(old)]:
        known[new + path.removeprefix(old)] = known.pop(path)
    _write_cache(known)


def known_digest_of_model(folder: Path, *, ignored: Container[str] = ()) -> str | None:
    """Return `digest_of_model` of a checkpoint if the folder of this name was hashed before; None if it was not.

    Only files that are new or have changed since are hashed. If the name is a link that was switched, all are.

    Raises:
        OSError: A file cannot be read.
    """
    known = _read_cache()
    files = [path for path in _checkpoint_files(folder, ignored) if path.is_file()]
    is_known = _folder_key(folder) in known or all(str(path.resolve()) in known for path in files)
    return digest_of_model(folder, ignored=ignored) if is_known else None


def _folder_key(folder: Path) -> str:
    """Return the key under which the cache says that a folder was hashed. No file's path ends like this."""
    return f"{folder.absolute()}/"


def _checkpoint_files(folder: Path, ignored: Container[str]) -> list[Path]:
    return [folder / name for name in relevant_files(files_in(folder)) if name not in ignored]


def digest_of_items(folder: Path, members: Iterable[str] = ()) -> str:
    """Return the SHA-256 over names and contents of all `<split>.jsonl` files of a task, also if a limit is set.

    Args:
        folder: Folder of the files; of a group, that of its members' folders.
        members: Names of the members of a group.

    Raises:
        OSError: A file cannot be read.
    """
    folders = [folder / member for member in members] or [folder]
    return _digest(folder, (path for one in folders for path in item_files(one)))


def item_files(folder: Path) -> Iterator[Path]:
    """Yield the `<split>.jsonl` files of a folder."""
    for pattern in _ITEM_FILES:
        yield from folder.glob(pattern)


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the contents of the named files, and over their names relative to `folder`.

    Raises:
        OSError: A file cannot be read.
    """
    return _digest(folder, (folder / name for name in names))


def digest_of_text(path: Path) -> str:
    """Return the SHA-256 of one file.

    Raises:
        OSError: The file cannot be read.
    """
    known = _read_cache()
    digest = _digest_of_file(path, known)
    _write_cache(known)
    return digest


def _digest(folder: Path, paths: Iterable[Path]) -> str:
    known = _read_cache()
    files = sorted(path for path in paths if path.is_file())
    found = [(path.relative_to(folder).as_posix(), _digest_of_file(path, known)) for path in files]
    _write_cache(known)
    return _total(found)


def _total(digests: Iterable[tuple[str, str]]) -> str:
    total = hashlib.sha256()
    for name, digest in digests:
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def _digest_of_file(path: Path, known: _Cache) -> str:
    found = _known(path, known)
    if found is None:
        stamp, found = file_stamp(path), digest_of_file(path)
        known[str(path.resolve())] = (*stamp, found)
    return found


def _known(path: Path, known: _Cache) -> str | None:
    entry = known.get(str(path.resolve()))
    return entry[3] if entry is not None and entry[:3] == file_stamp(path) else None


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
