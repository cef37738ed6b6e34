"""Isolation of the tests from the user's folders: the cache, and what runs have left in the checkout.

By construction: hpcq's default paths are relative to the working directory, so the tests run in an empty folder. Their
cache is a temporary folder with links to what the user's cache contains.

Enforced: an audit hook of the interpreter refuses to start a process in the checkout, and to open, list or change
anything in the checkout's `runs/`, `logs/` and `checkpoints/`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

CHECKOUT = Path(__file__).resolve().parents[1]
RUN_FOLDERS = tuple(str(CHECKOUT / name) for name in ("runs", "logs", "checkpoints"))
"""Folders that runs started in the checkout have by default."""

UNLINKED = "uv"
"""The download cache of uv, which changes it in place."""

DIGESTS = "digests.json"
"""The digests of files that were read."""

BY_READING = ("facts", "task-index")
"""Folders of facts about files, and of indexes of tasks, that hpcq creates when it reads them."""

COPIED = "nltk_data"
"""Models of nltk, which refuses to follow links out of its folder."""

_PATH_EVENTS = {
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink",
    "os.truncate", "os.chmod", "os.utime",
}  # fmt: skip


class IsolationError(Exception):
    """A test uses a folder of the user."""


class _Guard:
    """The audit hook. Python cannot remove it, so it can be deactivated.

    Attributes:
        is_active: Whether violations are refused.
        violations: Refused actions, including those whose exception the tested code has caught.
    """

    def __init__(self) -> None:
        self.is_active = False
        self.violations: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active:
            return
        if event == "subprocess.Popen":
            _, command, folder, _ = arguments
            self._refuse_checkout(event, folder)
            self._refuse_run_folders(event, [command] if isinstance(command, (str, bytes)) else command)
        elif event in _PATH_EVENTS:
            self._refuse_run_folders(event, arguments)
        elif event == "os.chdir":
            self._refuse_checkout(event, arguments[0])

    def _refuse_checkout(self, event: str, folder: Any) -> None:
        if isinstance(folder, (str, bytes, os.PathLike)) and _absolute(folder) == str(CHECKOUT):
            self._refuse(event, folder)

    def _refuse_run_folders(self, event: str, paths: Iterable[Any]) -> None:
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)) and _is_in_run_folder(_absolute(path)):
                self._refuse(event, path)

    def _refuse(self, event: str, path: Any) -> NoReturn:
        self.violations.append(f"{event} {os.fsdecode(path)}")
        raise IsolationError(f"{event}: a test must not use {os.fsdecode(path)}. Use tmp_path.")


def _absolute(path: str | bytes | os.PathLike[str]) -> str:
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - Path.absolute() keeps '..', and is slower


def _is_in_run_folder(path: str) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in RUN_FOLDERS)


_guard = _Guard()


@contextlib.contextmanager
def guarded_checkout() -> Iterator[None]:
    """Refuse to this process, and to the processes that it starts, what the module's docstring says."""
    sys.addaudithook(_guard)
    _guard.is_active = True
    try:
        yield
    finally:
        _guard.is_active = False


def take_violations() -> list[str]:
    """Return the actions that were refused since the last call."""
    taken, _guard.violations = _guard.violations, []
    return taken


def link_cache(folder: Path, user_cache: Path) -> None:
    """Create the tests' cache: `folder`, with links to the entries of the user's cache."""
    folder.mkdir(parents=True)
    for entry in user_cache.iterdir() if user_cache.is_dir() else ():
        if entry.is_file():
            shutil.copy(entry, folder)
        elif entry.name == COPIED:
            shutil.copytree(entry, folder / entry.name)
        elif entry.name != UNLINKED:
            (folder / entry.name).mkdir()
            for child in entry.iterdir():
                if not child.name.startswith("."):
                    (folder / entry.name / child.name).symlink_to(child)


def cache_entries(cache: Path) -> set[Path]:
    """Return the entries of the tests' cache, except what reading creates: digests, facts and indexes, and locks.

    Another process may be writing the digests: its temporary file disappears when it is complete.
    """
    return {
        path
        for pattern in ("*", "*/*")
        for path in cache.glob(pattern)
        if path.suffix != ".lock" and path.name != DIGESTS and not path.name.startswith(f".{DIGESTS}.")
        if path.relative_to(cache).parts[0] not in BY_READING
    }
