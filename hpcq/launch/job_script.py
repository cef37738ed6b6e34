"""Shell scripts that prepare a job's environment (modules, variables) before Python starts.

The only module that passes values to a shell: each value is quoted or refused here.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcq.core.environments import COMMIT_VARIABLE, NAME_VARIABLE, PACKAGE_VARIABLE
from hpcq.core.errors import UserInputError
from hpcq.core.files import write_text
from hpcq.core.paths import cache_folder
from hpcq.core.permissions import Trust
from hpcq.data import SBATCH
from hpcq.launch.array_spec import Environment
from hpcq.launch.package_snapshot import Snapshot

_MODULE_NAME = re.compile(r"[\w./][\w.+/@=:-]*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")

_BEFORE_SETUP = (
    "# The cluster's own lines: they may use unset variables (conda's do), and may return an error that is harmless.",
    "set +eu",
    "_hpcq_save_traps",
    "hpcq_in_setup=1",
    "trap 'hpcq_failed_line=$BASH_COMMAND' ERR",
)
_AFTER_SETUP = (
    "trap - ERR",
    "_hpcq_restore_traps",
    "unset hpcq_in_setup",
    '[ -z "${hpcq_failed_line:-}" ] || echo "hpcq: a line of setup returned an error: $hpcq_failed_line" >&2',
    "set -e",
)
"""sbatch/epilogue.sh reads the variables if a line ends the shell."""


def write_environment(path: Path, environment: Environment, *, threads: int, snapshot: Snapshot) -> None:
    """Write the script that prepares a shell for `environment`; batch scripts source it.

    Raises:
        UserInputError: The name of a module or variable is invalid.
    """
    write_text(path, environment_text(environment, threads=threads, snapshot=snapshot))


def check_lines(environment: Path, snapshot: Snapshot, programs: Sequence[Path], trust: Trust) -> list[str]:
    """Return the first lines of a batch script: exit unless only the user can write what the job executes.

    They contain the text of sbatch/private.sh: Slurm has a copy of the batch script, so other users cannot replace the
    code of the check. It checks `environment` with the folders of its submission, of all submissions and of the run,
    the snapshot of the package, and `programs`.
    """
    folders = (environment, *environment.parents[:3], snapshot.path.parent, snapshot.path)
    return [
        "set -euo pipefail",
        *(f"{name}={shlex.quote(value)}" for name, value in trust.variables().items()),
        script("private.sh").read_text(encoding="utf-8"),
        f"hpcq_require_private {shlex.join(map(str, (*folders, '--', *programs)))}",
    ]


def cached_programs(environment: Environment) -> list[Path]:
    """Return the interpreters of a job that are in hpcq's cache; the administrator provides the others."""
    cache = cache_folder()
    programs = dict.fromkeys((Path(sys.executable), Path(environment.python)))
    return [path for path in programs if path.exists() and path.parent.resolve().is_relative_to(cache)]


def environment_text(environment: Environment, *, threads: int, snapshot: Snapshot) -> str:
    """Return the script: permission check, variables (the profile's override ours), prologue, the profile's lines."""
    for name in environment.modules:
        if not _MODULE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.modules: {name!r} is not a valid module name.")
    for name, _ in environment.variables:
        if not _VARIABLE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.variables: {name!r} is not a valid variable name.")
    variables = {
        "HPCQ_PACKAGE_PATH": str(snapshot.path),
        PACKAGE_VARIABLE: snapshot.digest,
        COMMIT_VARIABLE: snapshot.commit,
        NAME_VARIABLE: environment.name,
        "HPCQ_THREADS": str(threads),
        "HPCQ_MODULES": " ".join(environment.modules),
        "HPCQ_MODULE_PATH": environment.module_path,
        **dict(environment.variables),
    }
    lines = [
        "# Prepares a shell for a unit; sourced by its batch script, or by hand through sbatch/enter.sh.",
        f"hpcq_require_private {shlex.join(map(str, (snapshot.path.parent, snapshot.path)))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        f". {shlex.quote(str(snapshot.script('prologue.sh')))}",
    ]
    if environment.setup:
        lines += [*_BEFORE_SETUP, *environment.setup, *_AFTER_SETUP]
    return "\n".join(lines) + "\n"


def script(name: str) -> Path:
    """Return the path of a file in `sbatch/`."""
    return SBATCH / name
