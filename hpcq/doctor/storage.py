"""Checks of a folder on a shared file system: what the store and the locks of a run need of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import HpcqError
from hpcq.core.files import describe_os_error, write_text
from hpcq.doctor.finding import Finding, fail, ok, warning

SECTION = "storage"
LOW_SPACE_BYTES = 20 * 10**9
LOW_FILES = 10_000
CLOCK_SKEW_S = 5.0
SLOW_FSYNC_S = 1.0
GIGABYTE = 10**9
_DEFAULT_ACL = "system.posix_acl_default"


def folder_findings(folder: Path, key: str) -> Iterator[Finding]:
    """Check a folder, or where it would be created: writable, space, files, atomic rename, locks, HDF5, clock.

    Args:
        folder: The folder.
        key: The key of the manifest, or the variable, that names it.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        yield fail(SECTION, f"{key}: {existing} is not a folder.", f"Set {key} to a folder.")
        return
    try:
        trial = Path(tempfile.mkdtemp(prefix=".hpcq-doctor-", dir=existing))
    except OSError as error:
        yield fail(SECTION, f"{key}: {describe_os_error(error)}", f"Set {key} to a folder that you can write to.")
        return
    try:
        yield from _trials(trial, key)
    except (HpcqError, OSError) as error:
        text = describe_os_error(error) if isinstance(error, OSError) else str(error)
        yield fail(SECTION, f"{key}: {text}", f"Set {key} to a folder on another file system.")
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    yield from _space(existing, key)


def _existing(folder: Path) -> Path:
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _trials(trial: Path, key: str) -> Iterator[Finding]:
    began_s = time.monotonic()
    write_text(trial / "file", "first")
    write_text(trial / "file", "second")  # to a temporary file, fsync, rename over the first
    seconds = time.monotonic() - began_s
    if (trial / "file").read_text(encoding="utf-8") != "second":
        yield fail(SECTION, f"{key}: a file that was renamed over another one is not visible.", f"Move {key}.")
    elif seconds > SLOW_FSYNC_S:
        yield warning(
            SECTION,
            f"{key}: two small files took {seconds:.1f} s to commit.",
            "Set evaluate.flush_interval_s to 60 or more, or use a faster file system.",
        )
    else:
        yield ok(SECTION, f"{key}: files are committed by rename ({1000 * seconds / 2:.0f} ms each).")
    if not _excludes(trial / "lock"):
        yield fail(
            SECTION,
            f"{key}: file locks (flock) have no effect, so two commands could change one run at the same time.",
            f"Mount it with locks (Lustre: -o flock), or move {key}.",
        )
    yield _hdf5(trial / "file.h5", key)
    skew_s = (trial / "file").stat().st_mtime - time.time()
    if abs(skew_s) > CLOCK_SKEW_S:
        yield warning(
            SECTION,
            f"{key}: the clock of its file server is {abs(skew_s):.0f} s {'ahead' if skew_s > 0 else 'behind'}.",
            "Ask the administrators to synchronize the clocks; times of attempts are those of the nodes.",
        )
    if _DEFAULT_ACL in _attributes(trial.parent):
        yield ok(SECTION, f"{key}: it has a default access list; hpcq sets the modes of its own files.")


def _excludes(path: Path) -> bool:
    """Return whether a lock on a file excludes another open descriptor of it."""
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _hdf5(path: Path, key: str) -> Finding:
    import h5py

    try:
        with h5py.File(path, "w") as written:
            written["numbers"] = [1, 2, 3]
        with h5py.File(path, "r") as read:
            is_equal = read["numbers"][:].tolist() == [1, 2, 3]
    except OSError as error:
        return fail(
            SECTION, f"{key}: HDF5 cannot write there ({error}).", "Set HDF5_USE_FILE_LOCKING=FALSE, or move it."
        )
    if not is_equal:
        return fail(SECTION, f"{key}: HDF5 reads other values than it wrote.", f"Move {key}.")
    return ok(SECTION, f"{key}: HDF5 {h5py.version.hdf5_version} writes and reads.")


def _attributes(folder: Path) -> list[str]:
    try:
        return os.listxattr(folder)
    except OSError:
        return []


def _space(folder: Path, key: str) -> Iterator[Finding]:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    text = f"{key}: {free / GIGABYTE:.0f} GB free in {folder}"
    if free < LOW_SPACE_BYTES:
        yield warning(SECTION, f"{text}.", "Free some space; `hpcq plan` prints what a run needs.")
    else:
        yield ok(SECTION, f"{text}. A quota is not visible here.")
    if found.f_files and found.f_favail < LOW_FILES:
        yield warning(
            SECTION, f"{key}: {found.f_favail} files may still be created in {folder}.", "Remove files, or move it."
        )
