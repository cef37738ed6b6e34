"""Permissions of a run's folders: no other user may be able to change what the run executes.

The scripts, the records and the copy of the package in the folders of a run are executed as the owner of the run. The
folders are created for their owner only. They are checked together with all folders above them, like ssh's StrictModes,
because a user who can write to a folder can replace everything below it. sbatch/private.sh repeats the checks when a
job starts.

The checks use owner and mode. Named entries of an access list count as the group, whose bits are their mask (acl(5)).
NFSv4's lists are not checked.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpcq.core.errors import UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout

_FOLDER_MODE = 0o700
_PARENT_MODE = 0o755
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Accounts that may change folders above a run, or own programs that it executes, besides this user and root.

    Attributes:
        uids: Ids of users.
        gids: Ids of groups. All members are trusted.
    """

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def variables(self) -> dict[str, str]:
        """Return the variables of sbatch/private.sh."""
        return {
            "HPCQ_TRUSTED_UIDS": " ".join(map(str, sorted(self.uids))),
            "HPCQ_TRUSTED_GIDS": " ".join(map(str, sorted(self.gids))),
        }


def trust_of(layout: RunLayout) -> Trust:
    """Return the accounts that the manifest trusts, and the user's private group (a group of the same name, alone).

    Raises:
        UserInputError: There is no such user or group.
    """
    return Trust(
        uids=frozenset(map(_uid, layout.trusted_users)),
        gids=frozenset((*map(_gid, layout.trusted_groups), *_private_group())),
    )


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UserInputError(f"paths.trusted_users: this machine has no user {name!r}.") from None


def _gid(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UserInputError(f"paths.trusted_groups: this machine has no group {name!r}.") from None


@functools.cache
def _private_group() -> tuple[int, ...]:
    """Return the group of the user alone, with which a umask of 002 is safe; no group if the primary one is another."""
    try:
        user = pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(user.pw_gid)
    except KeyError:
        return ()
    is_private = group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    return (group.gr_gid,) if is_private else ()


def check_folders(layout: RunLayout) -> tuple[Path, ...]:
    """Check the run's folders, as far as they exist, and all folders above, and return the run's folders.

    Raises:
        UserInputError: Another user owns one of them, or can write to it.
    """
    folders = (layout.folder, layout.job_logs, layout.launcher_logs, layout.packages)
    trust = trust_of(layout)
    for folder in folders:
        _check(folder)
        _check_ancestors(folder, trust, "other folders for the run (-O paths.runs=…, -O paths.logs=…)")
    return folders


def make_private_folders(layout: RunLayout) -> None:
    """Check the run's folders and all folders above, and create missing ones for their owner only.

    Files are never more accessible than their folder (`hpcq.core.files`), so the umask is left alone.

    Raises:
        UserInputError: Another user owns one of the folders, or can write to it.
        StorageError: A folder cannot be created.
    """
    for folder in check_folders(layout):
        with storage_errors(folder):
            for parent in reversed(folder.parents):
                # With any umask, others may not write to a new parent folder: they could replace what is in it.
                if not parent.exists():
                    parent.mkdir(mode=_PARENT_MODE, exist_ok=True)
            # The mode also limits what a default ACL of the parent folder grants (acl(5)).
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)


def check_programs(programs: Iterable[Path], trust: Trust) -> None:
    """Check that nobody else can replace one of the `programs`, or a folder above it. Missing ones are ignored.

    Raises:
        UserInputError: Another user owns one of them, or can write to it.
    """
    for program in programs:
        _check_components(_existing_components(program), trust, "another cache (HPCQ_CACHE)")


def _check(folder: Path) -> None:
    with storage_errors(folder):
        if not folder.exists():
            return
        found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise UserInputError(
            f"{folder}: belongs to {user_name(found.st_uid)}, who could make the jobs run commands as you: "
            "choose other folders for the run (-O paths.runs=…, -O paths.logs=…)."
        )
    if found.st_mode & _OTHERS_WRITE:
        raise UserInputError(
            f"{folder}: can be written by other users (mode {stat.S_IMODE(found.st_mode):o}), who could make the jobs "
            f"run commands as you: run `chmod go-w {folder}`."
        )


def _check_ancestors(folder: Path, trust: Trust, others: str) -> None:
    _check_components((path for path in _existing_components(folder) if path != folder), trust, others)


def _check_components(components: Iterable[Path], trust: Trust, others: str) -> None:
    for path in components:
        with storage_errors(path):
            found = path.lstat()
        if found.st_uid not in (os.geteuid(), 0, *trust.uids):
            raise UserInputError(
                f"{path}: belongs to {user_name(found.st_uid)}, who could replace what is below it, and so make the "
                f"jobs run commands as you. Choose {others}, or if you trust this user, add the name to "
                "paths.trusted_users."
            )
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISLNK(found.st_mode) or mode & stat.S_ISVTX:
            continue  # in a sticky folder, only its owner can replace an entry
        fix = f"Run `chmod go-w {path}`" if found.st_uid == os.geteuid() else f"Choose {others}"
        if mode & stat.S_IWOTH:
            raise UserInputError(
                f"{path}: can be written by all users (mode {mode:o}), who could replace what is below it, and so make "
                f"the jobs run commands as you. {fix}."
            )
        if mode & stat.S_IWGRP and found.st_gid not in trust.gids:
            raise UserInputError(
                f"{path}: can be written by the group {group_name(found.st_gid)} (mode {mode:o}), whose members could "
                f"replace what is below it, and so make the jobs run commands as you. {fix}, or if you trust all "
                "members, add the group to paths.trusted_groups."
            )


def _existing_components(path: Path) -> Iterator[Path]:
    """Yield each folder and link by which the kernel finds `path`, as far as it exists: all that can be replaced."""
    while not path.exists():
        path = path.parent
    waiting, seen = [path], set()
    while waiting:
        one = waiting.pop()
        for component in (one, *one.parents):
            if component not in seen:
                seen.add(component)
                yield component
                if component.is_symlink():
                    waiting.append(component.parent / component.readlink())


def user_name(uid: int) -> str:
    """Return the name of a user for a message."""
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"another user ({uid})"


def group_name(gid: int) -> str:
    """Return the name of a group for a message; its number if it has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
