"""Installed plugins: distributions with entry points of hpcq, and the declaration of what they add.

A declaration is the file hpcq-plugin.toml in the folder of the module that an entry point names. The planner reads this
file and imports no code of the plugin.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.core import environments
from hpcq.core.errors import SetupError
from hpcq.core.frozen import dataclass
from hpcq.data import MODULES

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DECLARATION = "hpcq-plugin.toml"
SCHEMA = 1
"""Version of the declaration's format."""


class Group(StrEnum):
    """Groups of entry points. The names of the first two are those of a manifest; the last only locates a file."""

    QUANTIZERS = "hpcq.quantizers"
    BACKENDS = "hpcq.backends"
    SCHEMES = "hpcq.schemes"

    @property
    def table(self) -> str:
        """Name of the group's table in a declaration."""
        return self.removeprefix("hpcq.")


_TABLES = (*(group.table for group in Group), "kernels")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A distribution that adds quantizers, backends or schemes.

    Attributes:
        distribution: Its normalized name.
        version: Its version.
        package: Folder of its top-level package.
        folder: Folder of its declaration and lock files.
        entry_points: Group, name and value of each entry point.
        tables: Content of the declaration: `quantizers`, `backends`, `schemes` by name, and the list `kernels`.
    """

    distribution: str
    version: str
    package: Path
    folder: Path
    entry_points: tuple[tuple[str, str, str], ...]
    tables: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def title(self) -> str:
        """Name and version of the distribution."""
        return f"{self.distribution} {self.version}"

    def implementations(self, group: Group) -> dict[str, str]:
        """Return `module:Class` by the names of the entry points in `group`."""
        return {name: value for own, name, value in self.entry_points if own == group}

    def rows(self, table: str) -> Mapping[str, Any]:
        """Return the rows of a table of the declaration by name; empty if it has none."""
        rows: Mapping[str, Any] = self.tables.get(table, {})
        return rows

    def error(self, problem: str) -> SetupError:
        """Return the error for an invalid declaration."""
        return SetupError(
            f"Plugin {self.title}: {self.folder / DECLARATION}: {problem}. Correct the file, or uninstall the plugin."
        )


def installed_plugins() -> tuple[Plugin, ...]:
    """Return the plugins of this interpreter, sorted by name.

    Raises:
        SetupError: A plugin has no valid declaration.
    """
    return _installed(tuple(sys.path))


@lru_cache(maxsize=8)
def _installed(_path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Find the plugins on `sys.path`; the argument is only the key of the cache."""
    from importlib.metadata import entry_points

    found: dict[tuple[str, str, Path, Path], list[tuple[str, str, str]]] = defaultdict(list)
    for group in Group:
        for point in entry_points(group=group):
            if point.dist is not None:
                name = environments.normalized_name(point.dist.name)
                key = (name, point.dist.version, *_folders(point, f"{name} {point.dist.version}"))
                found[key].append((str(group), point.name, point.value))
    plugins = tuple(_read(*key, tuple(points)) for key, points in sorted(found.items()))
    for first, second in itertools.pairwise(plugins):
        if first.distribution == second.distribution:
            raise first.error(f"the distribution has a second declaration in {second.folder}; it must have exactly one")
    return plugins


def _folders(point: EntryPoint, title: str) -> tuple[Path, Path]:
    """Return the folders of the top-level package and of the declaration. Neither is imported."""
    top, *inner = point.module.split(".")
    spec = importlib.util.find_spec(top)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        package = Path(location).resolve()
        folder = package.joinpath(*inner[:-1])
        if (folder / DECLARATION).is_file():
            return package, folder
    reason = f"the package '{top}' has no {DECLARATION}" if spec else f"the package '{top}' is not installed"
    raise SetupError(
        f"Plugin {title}: {reason}, which must be in the folder of the module '{point.module}' of its entry point"
        f" '{point.name}'. Correct or uninstall the plugin."
    )


def _read(
    distribution: str, version: str, package: Path, folder: Path, points: tuple[tuple[str, str, str], ...]
) -> Plugin:
    """Read and check the declaration in `folder`."""
    plugin = Plugin(
        distribution=distribution, version=version, package=package, folder=folder, entry_points=points, tables={}
    )
    try:
        tables = tomllib.loads((folder / DECLARATION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # not readable, not UTF-8 or not TOML
        raise plugin.error(f"it cannot be read ({error})") from error
    for problem in _problems(plugin, tables):
        raise plugin.error(problem)
    return Plugin(**{**vars(plugin), "tables": tables})


def _problems(plugin: Plugin, tables: Mapping[str, Any]) -> Iterator[str]:
    if tables.get("schema") != SCHEMA:
        yield f"schema = {tables.get('schema')} is not supported; this version of hpcq reads schema = {SCHEMA}"
    for name, table in tables.items():
        if name not in (*_TABLES, "schema"):
            yield f"unknown table '{name}'; allowed are {', '.join(_TABLES)}"
        if name in _TABLES and not isinstance(table, list if name == "kernels" else dict):
            yield f"'{name}' must be a {'array of tables' if name == 'kernels' else 'table'}"
    for group in (Group.QUANTIZERS, Group.BACKENDS):
        declared, registered = set(tables.get(group.table, {})), set(plugin.implementations(group))
        for name in sorted(registered - declared):
            yield f"[{group.table}.{name}] is missing, but the distribution has an entry point '{name}' in '{group}'"
        for name in sorted(declared - registered):
            yield f"[{group.table}.{name}] has no entry point in '{group}'"


def lock_folder(environment: str) -> Path:
    """Return the folder that contains the environment's lock file: a plugin's, or else that of hpcq.

    Raises:
        SetupError: More than one owner (hpcq or a plugin) has a lock file of that name.
    """
    owners = [plugin for plugin in installed_plugins() if environment in environments.names(plugin.folder)]
    if owners and environment in environments.names():
        lock = owners[0].folder / f"{environment}{environments.LOCK_SUFFIX}"
        raise SetupError(
            f"Plugin {owners[0].title}: {lock}: hpcq itself has an environment '{environment}'."
            " Rename the lock file, or uninstall the plugin."
        )
    if len(owners) > 1:
        raise SetupError(
            f"Plugins {owners[0].title} and {owners[1].title} both have a lock file of the environment"
            f" '{environment}'. Uninstall one of them."
        )
    return owners[0].folder if owners else MODULES


def pinned_version(distribution: str, environment: str) -> str | None:
    """Return the version of a distribution in the environment's lock file; None: there is none."""
    if environment not in environment_names():
        return None
    return environments.pins(environment, lock_folder(environment)).get(distribution)


def environment_names() -> tuple[str, ...]:
    """Return the names of all environments with a lock file: those of hpcq, then those of plugins."""
    of_plugins = (name for plugin in installed_plugins() for name in environments.names(plugin.folder))
    return tuple(dict.fromkeys((*environments.names(), *of_plugins)))
