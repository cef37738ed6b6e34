"""The only ways in which hpcq creates a file or a folder that must survive: beside, fsync, rename, fsync of the folder.

Knows nothing of what is written. Works where rename is atomic and nothing else is: no lock, no exclusive creation, and
what a killed process left is told from what a live one writes by the process that its name tells, not by clocks.
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
from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import StorageError
from hpcq.core.processes import identity

_NOT_CONNECTED = "the file system is not connected on this node: type the command again on another"
_CURES = {
    errno.ENOSPC: "the disk is full: free some room and type the command again",
    errno.EDQUOT: "your quota is used up: free some room and type the command again",
    errno.EFBIG: "the file is larger than the file system or your limit (ulimit -f) allows",
    errno.EACCES: "permission denied: choose a folder that you may write",
    errno.EPERM: "permission denied: choose a folder that you may write",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ESTALE: "the network file system lost the file: type the command again",
    errno.EIO: "the device reported an input/output error",
    errno.ENODEV: _NOT_CONNECTED,
    errno.ENOTCONN: _NOT_CONNECTED,
    errno.EHOSTDOWN: _NOT_CONNECTED,
    errno.ETIMEDOUT: _NOT_CONNECTED,
    errno.EEXIST: "a file stands where a folder should be",
    errno.ENOTDIR: "a part of that path is a file, not a folder",
}
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
"""Refusals that may end while a process waits: somebody makes room, a file server comes back."""
_TEMPORARY_SUFFIX = ".part"
_NOWHERE = "0" * 8
_WRITER = re.compile(r"\..+\.(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\.part")


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """One sentence for what the file system refused: the path, the cure where one is known, and the system's words."""
    place = Path(error.filename or path or "the file system")
    if path and any(part.endswith(_TEMPORARY_SUFFIX) for part in place.parts):
        place = path
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
        raise StorageError(describe_os_error(error, path)) from error


def is_passing(fault: StorageError) -> bool:
    """Whether the file system may yet do, without any change to the work, what it refused: no room, a lost server."""
    return isinstance(fault.__cause__, OSError) and fault.__cause__.errno in _PASSING


def _fsync(path: Path) -> None:
    """Make durable what a file holds, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path) -> list[Path]:
    """What is in `folder`, sorted; nothing where there is no such folder.

    Path.glob would take a folder that may not be read for an empty one.

    Raises:
        StorageError: the file system refused to tell.
    """
    with contextlib.suppress(FileNotFoundError), storage_faults(folder):
        return sorted(folder.iterdir())
    return []


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
    """A name in `path`'s folder that nobody else uses: hidden, ending in '.part', and telling which process writes."""
    return path.with_name(f".{path.name}.{_writer(os.getpid())}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")


@functools.lru_cache
def _writer(pid: int) -> str:
    """`<place>-<pid>-<start>`: where numbers of processes mean the same, the number, and when it was given."""
    known, namespace = identity(pid), Path("/proc/self/ns/pid")
    if known is None or not namespace.is_symlink():
        return f"{_NOWHERE}-{pid}-0"
    host, boot, _, start = known.rsplit(maxsplit=3)
    # Containers of one host may count their processes apart.
    place = f"{host} {boot} {namespace.readlink()}"
    return f"{hashlib.sha256(place.encode()).hexdigest()[:8]}-{pid}-{start}"


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders (for `name`) in `folder` whose process is gone, as this host can tell.

    What another host writes is left, what another user does as well (their processes may be hidden from us), and what
    cannot be removed.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob(f".{glob.escape(name) if name else '*'}.*{_TEMPORARY_SUFFIX}"):
            if path.lstat().st_uid == os.geteuid() and _is_orphan(path):
                _remove(path)


def _is_orphan(temporary: Path) -> bool:
    """Whether the process that the name tells is known to be gone."""
    writer, here = _WRITER.fullmatch(temporary.name), _writer(os.getpid()).partition("-")[0]
    if writer is None or here == _NOWHERE or writer["place"] != here:
        return False
    pid = int(writer["pid"])
    known = identity(pid)
    if known is not None:
        return known.split()[-1] != writer["start"]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False  # there, but not to be looked at just now


def _remove(temporary: Path) -> None:
    """As far as the file system lets us: what remains is no more than a name that nobody reads."""
    with contextlib.suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; whatever bears it is removed when the block fails."""
    with storage_faults(path):
        make_folder(path.parent)
        temporary = temporary_beside(path)
        try:
            yield temporary
        except BaseException:
            _remove(temporary)
            raise


@contextlib.contextmanager
def committed_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; when the block ends well the file is durable under `path`, else it is gone.

    Raises:
        StorageError: `path` is a folder; no room, no permission, read-only or stale.
    """
    with _temporary(path) as temporary:
        if path.is_dir():
            raise StorageError(f"{path}: is a folder; name a file.")
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)


@contextlib.contextmanager
def committed_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well it is durable as `path`, else it is gone.

    If `path` came to exist in the meantime (another worker made the same thing) the one that is there stays. What
    killed processes of this host left of earlier tries is removed first: it may be as large as a checkpoint.

    Raises:
        StorageError: no room, no permission, read-only or stale.
    """
    sweep(path.parent, path.name)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        for item in (*temporary.rglob("*"), temporary):
            _fsync(item)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            _remove(temporary)
        _fsync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Commit `text` as UTF-8 under `path`."""
    with committed_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
