"""Sees that nobody else can change what a run executes: its folders are made for their user alone, and checked.

Knows folders, owners and modes; sbatch/private.sh is the same check where a job begins. A job's pickle is code: who can
write it, its folder, or the link to hpcq in the run's folder, acts in the user's name.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import UserInputError
from hpcq.core.files import storage_faults
from hpcq.core.paths import RunLayout

_FOLDER_MODE = 0o700
_UMASK = 0o077
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextlib.contextmanager
def private(layout: RunLayout) -> Iterator[None]:
    """Check the run's folders, make those that are missing, and let no other user read what is made in the block.

    Raises:
        UserInputError: another user owns one of them, or can write it.
        StorageError: one cannot be made.
    """
    folders = (layout.folder, layout.job_logs, layout.launcher_logs)
    for folder in (*folders, layout.folder / "package"):
        _check(folder)
    before = os.umask(_UMASK)
    try:
        for folder in folders:
            with storage_faults(folder):
                # The mode bounds what a default ACL of the folder above grants, too (acl(5)).
                folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        yield
    finally:
        os.umask(before)


def _check(folder: Path) -> None:
    with storage_faults(folder):
        if not folder.exists():
            return
        found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise UserInputError(
            f"{folder}: belongs to {_name(found.st_uid)}, who could have the jobs run anything in your name; "
            "give the run folders of its own (-O paths.runs=…, -O paths.logs=…)."
        )
    if found.st_mode & _OTHERS_WRITE:
        raise UserInputError(
            f"{folder}: can be written by others (mode {stat.S_IMODE(found.st_mode):o}), who could have the jobs run "
            f"anything in your name; type `chmod go-w {folder}`."
        )


def _name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"another user ({uid})"
