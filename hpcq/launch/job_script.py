"""Shell scripts that prepare a job's environment (modules, variables) before Python starts.

The only module that passes values to a shell: each value is quoted or refused here.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import hpcq
from hpcq.catalog.plugins import Plugin
from hpcq.core.environments import NAME_VARIABLE
from hpcq.core.errors import UserInputError
from hpcq.core.files import storage_errors, temporary_path, write_text
from hpcq.data import SBATCH
from hpcq.launch.array_spec import Environment

PACKAGE = Path(hpcq.__file__).resolve().parent

_MODULE_NAME = re.compile(r"[\w./][\w.+/@=:-]*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_]\w*")

_BEFORE_SETUP = (
    "# The cluster's own lines: they may use unset variables (conda's do), and may return an error that is harmless.",
    "set +eu",
    "hpcq_in_setup=1",
    "trap 'hpcq_failed_line=$BASH_COMMAND' ERR",
)
_AFTER_SETUP = (
    "trap - ERR",
    "unset hpcq_in_setup",
    '[ -z "${hpcq_failed_line:-}" ] || echo "hpcq: a line of setup returned an error: $hpcq_failed_line" >&2',
    "set -e",
)
"""sbatch/epilogue.sh reads the variables if a line ends the shell."""


def write_environment(path: Path, environment: Environment, *, threads: int, package_path: Path) -> None:
    """Write the script that prepares a shell for `environment`; batch scripts source it.

    Raises:
        UserInputError: The name of a module or variable is invalid.
    """
    write_text(path, environment_text(environment, threads=threads, package_path=package_path))


def source_lines(environment: Path) -> list[str]:
    """Return the first lines of a batch script: check that only the user can write `environment`, then source it.

    The check includes three parent folders: the submission's, submitit's, and the run's log folder.
    """
    checked = (environment, *environment.parents[:3])
    return [
        "set -euo pipefail",
        f". {shlex.join(map(str, (script('private.sh'), *checked)))}",
        f". {shlex.quote(str(environment))}",
    ]


def environment_text(environment: Environment, *, threads: int, package_path: Path) -> str:
    """Return the script: permission check, variables (the profile's override ours), prologue, the profile's lines."""
    for name in environment.modules:
        if not _MODULE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.modules: {name!r} is not a valid module name.")
    for name, _ in environment.variables:
        if not _VARIABLE_NAME.fullmatch(name):
            raise UserInputError(f"environments.{environment.name}.variables: {name!r} is not a valid variable name.")
    variables = {
        "HPCQ_PACKAGE_PATH": str(package_path),
        NAME_VARIABLE: environment.name,
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
        lines += [*_BEFORE_SETUP, *environment.setup, *_AFTER_SETUP]
    return "\n".join(lines) + "\n"


def script(name: str) -> Path:
    """Return the path of a file in `sbatch/`."""
    return SBATCH / name


def package_path(folder: Path, plugins: Sequence[Plugin] = ()) -> Path:
    """Return a folder in `folder` with a link to the package hpcq and to those of `plugins`; create what is missing.

    The checkout itself would put tests/ and its other folders on a job's path. A site-packages folder would shadow the
    packages of the job's own environment.
    """
    path = folder / "package"
    with storage_errors(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _link(path / PACKAGE.name, PACKAGE)
        for plugin in plugins:
            _link(path / plugin.package.name, plugin.package)
            _write_metadata(path, plugin)
    return path


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink() or link.readlink() != target:
        temporary = temporary_path(link)
        temporary.symlink_to(target)
        temporary.replace(link)


def _write_metadata(folder: Path, plugin: Plugin) -> None:
    """Write name, version and entry points of a plugin, by which a job finds and checks it; remove other versions."""
    name = plugin.distribution.replace("-", "_")
    info = folder / f"{name}-{plugin.version}.dist-info"
    points = [f"[{group}]\n{point} = {value}\n" for group, point, value in plugin.entry_points]
    metadata = f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: {plugin.version}\n"
    info.mkdir(mode=0o700, exist_ok=True)
    for file_name, text in (("entry_points.txt", "".join(points)), ("METADATA", metadata)):
        write_text(info / file_name, text)
    for other in folder.glob(f"{name}-*.dist-info"):
        if other != info:
            shutil.rmtree(other)
