"""Crash-safe files and folders: write under a temporary name, fsync, rename, fsync the folder.

Every file or folder that must survive a crash is created here. Only rename has to be atomic: locks and exclusive
creation are not used. A leftover of a killed process is recognized by the process in its name, not by clocks.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hpcq.core.errors import StorageError
from hpcq.core.processes import identity

_NOT_CONNECTED = "the file system is not connected on this node: repeat the command on another"
_HINTS = {
    errno.ENOSPC: "the disk is full: free some space and repeat the command",
    errno.EDQUOT: "your quota is used up: free some space and repeat the command",
    errno.EFBIG: "the file is larger than the file system or your limit (ulimit -f) allows",
    errno.EACCES: "permission denied: choose a folder that you can write to",
    errno.EPERM: "permission denied: choose a folder that you can write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ESTALE: "the network file system lost the file: repeat the command",
    errno.EIO: "the device reported an input/output error",
    errno.ENODEV: _NOT_CONNECTED,
    errno.ENOTCONN: _NOT_CONNECTED,
    errno.EHOSTDOWN: _NOT_CONNECTED,
    errno.ETIMEDOUT: _NOT_CONNECTED,
    errno.EEXIST: "a file exists where a folder should be",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
}
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""Errors that may go away while a process waits: a user frees space, a file server comes back."""
MAX_RECORD_BYTES = 1 << 28
"""Maximum size of manifests, plans and records: a plan of 100,000 units has a quarter of it."""

_FSYNC_THREADS = 16

_OTHERS_READ = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
_TEMPORARY_SUFFIX = ".part"
_UNKNOWN_HOST = "0" * 8
_TEMPORARY_NAME = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\.part")


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """Return one sentence for an error of the file system: path, hint (if one is known) and the system's message."""
    location = Path(error.filename or path or "the file system")
    if path and any(part.endswith(_TEMPORARY_SUFFIX) for part in location.parts):
        location = path
    hint = _HINTS.get(error.errno or 0)
    return f"{location}: {hint} ({error.strerror})." if hint else f"{location}: {error.strerror or error}."


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the file system's errors into a StorageError that names `path`; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _HINTS:
            raise
        raise StorageError(describe_os_error(error, path)) from error


def is_transient(error: StorageError) -> bool:
    """Return whether the same operation may succeed later: no space, a file server that is away."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _TRANSIENT


def fsync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_all(paths: Iterable[Path]) -> None:
    """Call `fsync` for all `paths`. File systems commit concurrent calls together: a tenth of the time for hundreds."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_FSYNC_THREADS) as threads:
        list(threads.map(fsync, paths))


class IrregularFileError(ValueError):
    """Something else is where a file should be: a FIFO, a device, or more bytes than such a file can have."""


def read_regular(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """Return the content of a regular file. A FIFO would block, and a device may have no end.

    Raises:
        IrregularFileError: It is not a regular file, or it is larger than `max_bytes`.
        OSError: It cannot be read.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise IrregularFileError(f"it has {size} bytes, more than {max_bytes}")
        return file.read()


def read_tail(path: Path, max_bytes: int, offset: int = 0) -> bytes:
    """Return the last bytes of a regular file, at most `max_bytes`, without the first `offset` bytes of the file.

    Raises:
        IrregularFileError: It is not a regular file.
        OSError: It cannot be read.
    """
    with _open_regular(path) as file:
        file.seek(max(offset, os.fstat(file.fileno()).st_size - max_bytes))
        return file.read(max_bytes)


def _open_regular(path: Path) -> BinaryIO:
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise IrregularFileError("it is not a regular file")


def list_folder(folder: Path) -> list[Path]:
    """Return the sorted paths in `folder`; an empty list if there is no such folder.

    Path.glob treats a folder without read permission as an empty one.

    Raises:
        StorageError: The folder cannot be listed.
    """
    with contextlib.suppress(FileNotFoundError), storage_errors(folder):
        return sorted(folder.iterdir())
    return []


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, and make each name durable in its parent folder."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            new.mkdir()
        except FileExistsError:  # another process has just created it
            if not new.is_dir():
                raise
        else:
            _limit_mode(new, new.parent)
        fsync(new.parent)


def _limit_mode(path: Path, folder: Path, allowed: int = 0) -> None:
    """Make `path` no more accessible than `folder`: a run's folders are private, with any umask and any default ACL.

    Args:
        path: A file or folder in `folder`.
        folder: The folder.
        allowed: Bits of the mode that `path` may have in any folder.
    """
    if path.is_symlink():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    limited = mode & (folder.stat().st_mode | stat.S_IRWXU | allowed)
    if limited != mode:
        path.chmod(limited)


def temporary_path(path: Path) -> Path:
    """Return a unique name in `path`'s folder: hidden, with the suffix '.part' and the identity of this process."""
    return path.with_name(f".{path.name}.{_process_tag(os.getpid())}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")


@functools.lru_cache
def _process_tag(pid: int) -> str:
    """Return `<host>-<pid>-<start>`: digest of host, boot and PID namespace; process id; start time of the process."""
    known, namespace = identity(pid), Path("/proc/self/ns/pid")
    if known is None or not namespace.is_symlink():
        return f"{_UNKNOWN_HOST}-{pid}-0"
    host, boot, _, start = known.rsplit(maxsplit=3)
    # Containers of one host may have separate PID namespaces.
    host_and_namespace = f"{host} {boot} {namespace.readlink()}"
    return f"{hashlib.sha256(host_and_namespace.encode()).hexdigest()[:8]}-{pid}-{start}"


def remove_stale_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders (of `name`) in `folder` whose process has exited, as far as this host knows.

    Those of other hosts and other users (their processes may be hidden) stay, and those that cannot be removed.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob(f".{glob.escape(name) if name else '*'}.*{_TEMPORARY_SUFFIX}"):
            if path.lstat().st_uid == os.geteuid() and _is_orphan(path):
                _remove_temporary(path)


def _is_orphan(temporary: Path) -> bool:
    """Return whether the process in the name is known to have exited."""
    writer, this_host = _TEMPORARY_NAME.fullmatch(temporary.name), _process_tag(os.getpid()).partition("-")[0]
    if writer is None or this_host == _UNKNOWN_HOST or writer["host"] != this_host:
        return False
    pid = int(writer["pid"])
    known = identity(pid)
    if known is not None:
        return known.split()[-1] != writer["start"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False  # it exists, but /proc does not show it


def _remove_temporary(temporary: Path) -> None:
    """Remove as much as the file system allows; a leftover is harmless, as temporary names are never read."""
    with contextlib.suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`; what has that name is removed if the block fails."""
    with storage_errors(path):
        make_folder(path.parent)
        temporary = temporary_path(path)
        try:
            yield temporary
        except BaseException:
            _remove_temporary(temporary)
            raise


@contextlib.contextmanager
def committed_file(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; if the block succeeds it becomes `path`, durably, else it is removed.

    Args:
        path: The file.
        is_durable: Return when the file is on disk. False: a crash of the host may leave an empty file.

    Raises:
        StorageError: `path` is a folder; no space, no permission, read-only or stale.
    """
    with _temporary(path) as temporary:
        if path.is_dir():
            raise StorageError(f"{path}: is a folder; name a file.")
        yield temporary
        _limit_mode(temporary, path.parent)
        if is_durable:
            fsync(temporary)
        temporary.replace(path)
        if is_durable:
            fsync(path.parent)


@contextlib.contextmanager
def committed_folder(path: Path, *, is_private: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; if the block succeeds it becomes `path`, durably, else it is removed.

    If `path` exists by then (another worker made the same thing), the existing one stays. Leftovers of killed processes
    of this host are removed first, as they may be as large as a checkpoint.

    Args:
        path: The folder.
        is_private: Whether its files are no more accessible than the folder of `path`; otherwise others may read them.

    Raises:
        StorageError: No space, no permission, read-only or stale.
    """
    remove_stale_temporaries(path.parent, path.name)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        # A link's target belongs to another folder.
        items = (*(item for item in temporary.rglob("*") if not item.is_symlink()), temporary)
        for item in items:
            _limit_mode(item, path.parent, 0 if is_private else _OTHERS_READ)
        _fsync_all(items)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            _remove_temporary(temporary)
        fsync(path.parent)


def write_text(path: Path, text: str, *, is_durable: bool = True) -> None:
    """Commit `text` as UTF-8 to `path`; `is_durable` as in `committed_file`."""
    with committed_file(path, is_durable=is_durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Return a file's size in bytes, modification time in nanoseconds and inode, one of which changes with its content.

    Raises:
        OSError: The file does not exist.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content: 64 hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
