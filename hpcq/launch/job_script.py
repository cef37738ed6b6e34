"""What a job's shell does before the interpreter starts, written as a small script beside the job's pickle.

Knows environments and `sbatch/`. The one place where values meet a shell: all are quoted or refused here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import hpcq
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import storage_faults, temporary_beside, write_text
from hpcq.launch.array_spec import Environment

PACKAGE = Path(hpcq.__file__).resolve().parent
SCRIPTS = PACKAGE.parent / "sbatch"

_MODULE_NAME = re.compile(r"[\w./][\w.+/@=:-]*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")


def write_environment(path: Path, environment: Environment, *, threads: int, package_path: Path) -> None:
    """Write the script that prepares a shell for `environment`; batch scripts source it.

    Raises:
        UserInputError: a name of a module or variable that is none.
        SetupError: hpcq was installed without its `sbatch/` folder.
    """
    write_text(path, environment_text(environment, threads=threads, package_path=package_path))


def entering(environment: Path) -> list[str]:
    """The first lines of a batch script: believe the script at `environment`, and run it, if it is nobody else's.

    It lies in a folder of its submission's, that in submitit's, that in the folder of the run's logs.
    """
    places = (environment, *environment.parents[:3])
    return [
        "set -euo pipefail",
        f". {shlex.join(map(str, (script('private.sh'), *places)))}",
        f". {shlex.quote(str(environment))}",
    ]


def environment_text(environment: Environment, *, threads: int, package_path: Path) -> str:
    """The script: who can write the run's folder, variables (the profile's may replace ours), prologue, own lines."""
    for name in environment.modules:
        if not _MODULE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.modules: {name!r} is no name of a module.")
    for name, _ in environment.variables:
        if not _VARIABLE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.variables: {name!r} is no name of a variable.")
    variables = {
        "HPCQ_PACKAGE_PATH": str(package_path),
        "HPCQ_THREADS": str(threads),
        "HPCQ_MODULES": " ".join(environment.modules),
        **dict(environment.variables),
    }
    lines = [
        "# Prepares a shell for a unit; sourced by its batch script, or by hand through sbatch/enter.sh.",
        f". {shlex.join(map(str, (script('private.sh'), package_path.parent, package_path)))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        f". {shlex.quote(str(script('prologue.sh')))}",
    ]
    if environment.setup:
        # Activation scripts of conda and the like read variables that need not be there.
        lines += ["set +u", *environment.setup]
    return "\n".join(lines) + "\n"


def script(name: str) -> Path:
    """One of the files under `sbatch/`.

    Raises:
        SetupError: hpcq was installed without them.
    """
    path = SCRIPTS / name
    if not path.is_file():
        raise SetupError(f"{path} is missing: run hpcq from its checkout, or install it with `pip install -e`.")
    return path


def package_path(folder: Path) -> Path:
    """A folder under `folder` that holds a link to the package hpcq and nothing else.

    The checkout would put tests/ and its other folders on a job's path, and a site-packages folder would shadow the
    packages of the job's own environment.
    """
    path = folder / "package"
    link = path / PACKAGE.name
    with storage_faults(link):
        path.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != PACKAGE:
            temporary = temporary_beside(link)
            temporary.symlink_to(PACKAGE)
            temporary.replace(link)
    return path
