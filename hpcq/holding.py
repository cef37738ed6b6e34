"""Who works on a run: one command at a time, by a lock that the kernel frees whatever becomes of its holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import IO

from hpcq.errors import EnvironmentFault
from hpcq.files import storage_faults
from hpcq.layout import RunLayout
from hpcq.processes import identity

ATTEMPTS = 10
ATTEMPT_INTERVAL_S = 0.1
_PRIVATE = 0o700


@contextlib.contextmanager
def hold(layout: RunLayout) -> Iterator[None]:
    """Hold the run while it is handed over (on this machine: while it runs), so that nothing is done twice.

    Makes the run's folder, for its user alone, if need be.

    Raises:
        EnvironmentFault: another process holds it.
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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(ATTEMPT_INTERVAL_S)
        else:
            return
    raise EnvironmentFault(
        f"{layout.folder}: another hpcq command is working on this run; watch it with "
        f"`hpcq status {layout.name} --watch`."
    )


def is_held(layout: RunLayout) -> bool:
    """Whether a command, here or on a host that shares the file system's locks, is working on the run."""
    try:
        with layout.held.open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def holder(layout: RunLayout) -> str | None:
    """The identity of the process that holds the run; None: nobody does."""
    return (layout.held.read_text(encoding="utf-8").strip() or None) if is_held(layout) else None
