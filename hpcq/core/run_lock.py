"""Who works on a run: one command at a time, by a lock that the kernel frees whatever becomes of its holder.

A file system without locks (Lustre mounted without flock, NFS without its lock daemon) leaves the name that the holder
wrote: then commands on one host see each other and those on two do not. Nothing is lost by that; work may be handed
over twice, and every unit's work may be done twice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import IO

from hpcq.core.errors import SetupError
from hpcq.core.files import storage_faults
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity, is_alive

ATTEMPTS = 10
ATTEMPT_INTERVAL_S = 0.1
_PRIVATE = 0o700
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def hold(layout: RunLayout) -> Iterator[None]:
    """Hold the run while it is handed over (on this machine: while it runs), so that nothing is done twice.

    Makes the run's folder, for its user alone, if need be.

    Raises:
        SetupError: another process holds it.
    """
    with storage_faults(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
        with layout.held.open("a+", encoding="utf-8") as file:
            _lock(file, layout)
            file.truncate(0)
            file.write(identity(os.getpid()) or "")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def _lock(file: IO[str], layout: RunLayout) -> None:
    """Take the lock; `is_held` has it for an instant too, so a refusal must last to be believed."""
    for _ in range(ATTEMPTS):
        if _take(file, fcntl.LOCK_EX, layout):
            return
        time.sleep(ATTEMPT_INTERVAL_S)
    raise SetupError(
        f"{layout.folder}: another hpcq command is working on this run; watch it with "
        f"`hpcq status {layout.name} --watch`."
    )


def _take(file: IO[str], kind: int, layout: RunLayout) -> bool:
    """Take the lock if nobody has it; without locks, see whether whoever wrote the file lives on this host."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return not is_alive(layout.held.read_text(encoding="utf-8").strip())
    return True


def is_held(layout: RunLayout) -> bool:
    """Whether a command, here or on a host that shares the file system's locks, is working on the run."""
    try:
        with storage_faults(layout.held), layout.held.open("r", encoding="utf-8") as file:
            return not _take(file, fcntl.LOCK_SH, layout)
    except FileNotFoundError:
        return False


def holder(layout: RunLayout) -> str | None:
    """The identity of the process that holds the run; None: nobody does."""
    return (layout.held.read_text(encoding="utf-8").strip() or None) if is_held(layout) else None
