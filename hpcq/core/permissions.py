"""Permissions of a run's folders: no other user may be able to change what the run executes.

A job's pickle is code: a user who can write it, its folder, or the link to hpcq in the run's folder can run anything as
the owner of the run. The folders are created for their owner only, and checked. sbatch/private.sh repeats the check
when a job starts.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from hpcq.core.errors import UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.paths import RunLayout

_FOLDER_MODE = 0o700
_PARENT_MODE = 0o755
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private_folders(layout: RunLayout) -> None:
    """Check the run's folders, and create missing ones for their owner only.

    Files are never more accessible than their folder (`hpcq.core.files`), so the umask is left alone.

    Raises:
        UserInputError: Another user owns one of the folders, or can write to it.
        StorageError: A folder cannot be created.
    """
    folders = (layout.folder, layout.job_logs, layout.launcher_logs)
    for folder in (*folders, layout.folder / "package"):
        _check(folder)
    for folder in folders:
        with storage_errors(folder):
            for parent in reversed(folder.parents):
                # With any umask, others may not write to a new parent folder: they could replace what is in it.
                if not parent.exists():
                    parent.mkdir(mode=_PARENT_MODE, exist_ok=True)
            # The mode also limits what a default ACL of the parent folder grants (acl(5)).
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def _check(folder: Path) -> None:
    with storage_errors(folder):
        if not folder.exists():
            return
        found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise UserInputError(
            f"{folder}: belongs to {user_name(found.st_uid)}, who could make the jobs run commands as you; "
            "choose other folders for the run (-O paths.runs=…, -O paths.logs=…)."
        )
    if found.st_mode & _OTHERS_WRITE:
        raise UserInputError(
            f"{folder}: can be written by other users (mode {stat.S_IMODE(found.st_mode):o}), who could make the jobs "
            f"run commands as you; type `chmod go-w {folder}`."
        )


def user_name(uid: int) -> str:
    """Return the name of a user for a message."""
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"another user ({uid})"
