"""Make the index of lm-eval's tasks, or of a user's definitions, with the lm-eval of an environment.

An index is made once per environment, and once per version of a user's files; later commands read it. That of lm-eval
is made by `make environments` (`python -m hpcq.catalog.make_task_index`), or by the first command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from hpcq.catalog.task_index import ENVIRONMENT, Entry, definitions_file, index_file, indexed_names, write_index
from hpcq.core import environments
from hpcq.core.errors import HpcqError, SetupError, UserInputError

_PROGRAM = "hpcq.evaluate.task_index_program"

NO_ENVIRONMENT = (
    f"because the environment '{ENVIRONMENT}' does not exist: run `hpcq stage MANIFEST`, or `make environments`."
)
"""Why lm-eval's tasks are not known on this machine, and the fix."""


class NoEnvironmentError(SetupError):
    """The environment with lm-eval does not exist, and this command does not create it."""


_may_create_environment: ContextVar[bool] = ContextVar("may create the environment", default=False)


@contextlib.contextmanager
def environment_creation() -> Iterator[None]:
    """Allow, in the block, that a missing environment is created for an index: `hpcq stage` does, `plan` does not."""
    token = _may_create_environment.set(True)
    try:
        yield
    finally:
        _may_create_environment.reset(token)


def ensure_index() -> Path:
    """Return the index of lm-eval's own tasks; make it if it does not exist.

    Raises:
        NoEnvironmentError: The environment does not exist.
        SetupError: The program failed.
        StorageError: The cache cannot be written.
    """
    path = index_file()
    if indexed_names(path) is None:
        entries = _run([], "Making the index of lm-eval's tasks, once per environment (a minute or less)")
        write_index(path, entries)
    return path


def ensure_definitions_index(folders: list[Path], digest: str) -> Path:
    """Return the index of the user's definitions in `folders`; make it if it does not exist.

    Raises:
        UserInputError: A definition is invalid; the sentence names its file and line.
        NoEnvironmentError: The environment does not exist.
        SetupError: The program failed.
        StorageError: The cache cannot be written.
    """
    path = definitions_file(digest)
    if indexed_names(path) is None:
        names = ", ".join(map(str, folders))
        write_index(path, _run(folders, f"Reading the definitions of tasks in {names}"))
    return path


def _run(folders: list[Path], line: str) -> list[tuple[str, Entry]]:
    """Run the program, and return the entries that it writes.

    Args:
        folders: Folders of the user's definitions; empty: lm-eval's own definitions are described.
        line: What is shown on stderr before.

    Raises:
        UserInputError: A definition of the user is invalid.
        NoEnvironmentError: The environment does not exist, and may not be created.
        SetupError: The program failed.
    """
    if _may_create_environment.get():
        python = environments.create(ENVIRONMENT)
    elif environments.exists(ENVIRONMENT):
        python = environments.interpreter(ENVIRONMENT)
    else:
        raise NoEnvironmentError(f"lm-eval's tasks are not known here, {NO_ENVIRONMENT}")
    sys.stderr.write(f"{line}\n")
    done = subprocess.run(
        [python, "-m", _PROGRAM, *folders],
        env={**os.environ, "PYTHONPATH": str(environments.CHECKOUT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = " ".join(done.stderr.splitlines()[-1:]) or f"exit code {done.returncode}"
        raise SetupError(
            f"The index of lm-eval's tasks could not be made: {python} -m {_PROGRAM} failed ({last}). If the"
            f" environment is damaged, remove {environments.folder(ENVIRONMENT)} and run `make environments`."
        )
    entries: list[tuple[str, Entry]] = []
    for text in done.stdout.splitlines():
        name, entry = json.loads(text)
        if name is None:
            raise UserInputError(str(entry))
        entries.append((name, entry))
    return entries


def main() -> int:
    """Make the index of lm-eval's tasks unless it exists, and return the exit code. `make environments` calls it."""
    try:
        ensure_index()
    except HpcqError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
