"""Commands of other users than root, in a mount namespace in which they can read the interpreter and the checkout."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.hub.user import User
from tests.isolation import CHECKOUT

SHELL = """
set -e
umask 022
mount -t tmpfs none "$1"
number=0
for folder in $2; do
    number=$((number + 1))
    mkdir -p "$1/$number/upper" "$1/$number/work"
    mount -t overlay none -o "lowerdir=$folder,upperdir=$1/$number/upper,workdir=$1/$number/work" "$folder"
done
umask "$3"
shift 3
exec setpriv "$@"
"""
"""Make folders readable by all users with an overlay file system, and execute a command as another user."""


def as_other_user(user: User, uid: int, *, umask: str, groups: Iterable[int] = ()) -> User:
    """Return a user with another id, whose home and working directory belong to it.

    Args:
        user: The user. All parents of its folders are readable by everybody.
        uid: The id of the user and of its own group.
        umask: The umask, in octal digits.
        groups: Further groups.
    """
    mounts = user.hpcq.folder.parent / "mounts"
    mounts.mkdir()
    user.home.mkdir(exist_ok=True)
    for folder in (user.home, user.hpcq.folder):
        os.chown(folder, uid, uid)
    ids = ("--reuid", str(uid), "--regid", str(uid), "--groups", ",".join(map(str, (uid, *groups))))
    private = private_folders(CHECKOUT, user.hpcq.python, Path(sys.base_prefix) / "bin")
    wrapper = ("unshare", "--mount", "sh", "-c", SHELL, "sh", str(mounts), " ".join(private), umask, *ids)
    return dataclasses.replace(user, hpcq=dataclasses.replace(user.hpcq, wrapper=wrapper))


def private_folders(*paths: Path) -> list[str]:
    """Return those parents of the paths that other users cannot enter, the outermost first."""
    parents = {parent for path in paths for start in (path, path.resolve()) for parent in start.parents}
    return sorted(str(parent) for parent in parents if not parent.stat().st_mode & stat.S_IXOTH)
