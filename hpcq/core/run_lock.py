"""Lock of a run: one command at a time works on it. The kernel releases the lock when its owner exits.

On a file system without locks (Lustre mounted without flock, NFS without its lock daemon) the process identity in the
lock file is used instead: then commands on one host exclude each other, and commands on different hosts do not. No data
is lost in that case; units may be submitted and computed twice. A warning is logged.

The library filelock (4.2) cannot replace this module: it has no shared lock, so two `hpcq status` would report each
other; it creates the file, which a status query must not; and its fallback covers only ENOSYS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from typing import IO

from hpcq.core.errors import SetupError
from hpcq.core.files import storage_errors
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity, is_alive

MAX_TRIES = 10
RETRY_INTERVAL_S = 0.1
_FOLDER_MODE = 0o700
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(layout: RunLayout) -> Iterator[None]:
    """Lock the run while it is submitted (with the local launcher: while it runs), so that nothing is done twice.

    Creates the run's folder, for its owner only, if it does not exist.

    Raises:
        SetupError: Another process has the lock.
    """
    with storage_errors(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER_MODE)
        with layout.run_lock.open("a+", encoding="utf-8") as file:
            _lock(file, layout)
            file.truncate(0)
            file.write(identity(os.getpid()) or "")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def _lock(file: IO[str], layout: RunLayout) -> None:
    """Acquire the lock, with retries: `is_locked` of another command acquires it for a moment too."""
    for _ in range(MAX_TRIES):
        if _try_lock(file, fcntl.LOCK_EX, layout):
            return
        time.sleep(RETRY_INTERVAL_S)
    raise SetupError(
        f"{layout.folder}: another hpcq command is working on this run; watch it with "
        f"`hpcq status {layout.name} --watch`."
    )


def _try_lock(file: IO[str], kind: int, layout: RunLayout) -> bool:
    """Acquire the lock if it is free; without locks, return whether the owner in the file has exited on this host."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        is_free = not is_alive(layout.run_lock.read_text(encoding="utf-8").strip())
        if is_free and kind == fcntl.LOCK_EX:
            _log.warning(
                "%s: the file system has no locks (%s). Do not work on this run from two hosts at once.",
                layout.folder,
                error.strerror,
            )
        return is_free
    return True


def is_locked(layout: RunLayout) -> bool:
    """Return whether a command is working on the run, on this host or on one that shares the file system's locks."""
    try:
        with storage_errors(layout.run_lock), layout.run_lock.open("r", encoding="utf-8") as file:
            return not _try_lock(file, fcntl.LOCK_SH, layout)
    except FileNotFoundError:
        return False


def lock_owner(layout: RunLayout) -> str | None:
    """Return the identity of the process that has the lock; None if it is free."""
    return (layout.run_lock.read_text(encoding="utf-8").strip() or None) if is_locked(layout) else None
