"""File mode creation mask (umask(2)): private for a run's files, the user's own for caches that others may read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PRIVATE_UMASK = 0o077
USER_UMASK_VARIABLE = "HPCQ_USER_UMASK"
"""The user's umask in octal digits, for this process and its jobs. sbatch/prologue.sh sets it, too."""


def make_private() -> None:
    """Make the files that this process creates private, and record the user's umask."""
    os.environ[USER_UMASK_VARIABLE] = f"{os.umask(PRIVATE_UMASK):03o}"


@contextlib.contextmanager
def user_umask() -> Iterator[None]:
    """Create files in the block with the user's umask, if one is recorded."""
    try:
        before = os.umask(int(os.environ[USER_UMASK_VARIABLE], 8))
    except (KeyError, ValueError):
        yield
        return
    try:
        yield
    finally:
        os.umask(before)
