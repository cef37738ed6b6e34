"""A repository as a local folder in which only the files that are read have content.

`datasets` decides by the names of all files, and by README.md, which files belong to a configuration and a split. The
view has an empty file for each name, so that it decides as it does on the hub before anything is downloaded. Then the
files of the configuration are fetched and linked.

A mirrored repository may also have plain files: `<split>.parquet`, `.jsonl` or `.csv` (or several, with names like
`<split>-00000-of-00002.parquet`), in a folder per configuration, or without one if only one configuration is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from hpcq.core.errors import SetupError
from hpcq.core.frozen import dataclass
from hpcq.core.mirror import CONFIGURATION_FILE
from hpcq.stage.repositories import Repository

_METADATA = ("README.md", CONFIGURATION_FILE, "dataset_infos.json")
"""Files that `datasets` reads to find configurations and features."""

_DEFAULT = "default"
_PLAIN_FILE = re.compile(r"(?P<split>\w+(?:\.\w+)*?)(?:-\d{5}-of-\d{5})?\.(?P<suffix>parquet|jsonl|csv)")
_FORMATS = {"parquet": "parquet", "jsonl": "json", "csv": "csv"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Arguments for `datasets.load_dataset` that load from a view.

    Attributes:
        path: The folder of the view, or the format of plain files.
        options: Further arguments.
        is_plain: Whether plain files of a mirror are loaded.
    """

    path: str
    options: dict[str, Any]
    is_plain: bool = False


@dataclass(kw_only=True)
class RepositoryView:
    """A repository in a temporary folder.

    Attributes:
        repository: The repository.
        folder: The view's folder; its name is that of the repository, without the organization.
        plain_configuration: The configuration for which plain files without a folder were read.
    """

    repository: Repository
    folder: Path
    plain_configuration: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.names = self.repository.names()
        for name in self.names:
            self._path(name).parent.mkdir(parents=True, exist_ok=True)
            self._path(name).touch()
        self.link(name for name in self.names if name in _METADATA)

    def link(self, names: Iterable[str]) -> None:
        """Fetch files, and replace the empty ones by links to them."""
        empty = [name for name in names if not self._path(name).is_symlink()]
        source = self.repository.fetch(empty) if empty else self.folder
        for name in empty:
            self._path(name).unlink()
            self._path(name).symlink_to((source / name).absolute())

    def relative_name(self, path: str) -> str:
        """Return a file's name in the repository.

        Raises:
            SetupError: The file is not in the repository: its README.md or the task names a file elsewhere.
        """
        if not Path(path).is_relative_to(self.folder):
            raise SetupError(
                f"{self.repository.repo_id}: its README.md or the task reads {path}, which is not a file of this data"
                " set. Remove the task, or set tasks.data to a folder of <split>.jsonl files."
            )
        return Path(path).relative_to(self.folder).as_posix()

    def select(self, arguments: dict[str, Any]) -> Selection:
        """Return how to load what the arguments of `load_dataset` select.

        Raises:
            SetupError: The plain files of a mirror have several formats, or no configuration of that name.
        """
        name = arguments.get("name") or _DEFAULT
        plain = self._plain_files(name) if self._may_be_plain(arguments) else {}
        if not plain:
            return Selection(path=str(self.folder), options=arguments)
        others = {key: value for key, value in arguments.items() if key != "name"}
        suffixes = sorted({file.rpartition(".")[2] for files in plain.values() for file in files})
        if len(suffixes) > 1:
            raise SetupError(
                f"{self.repository.repo_id}: the mirrored files of configuration '{name}' have several formats "
                f"({', '.join(suffixes)}). Keep one of them."
            )
        files = {split: [str(self.folder / file) for file in found] for split, found in plain.items()}
        return Selection(path=_FORMATS[suffixes[0]], options={**others, "data_files": files}, is_plain=True)

    def _path(self, name: str) -> Path:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SetupError(f"{self.repository.repo_id}: the file name '{name}' is outside of the repository.")
        return self.folder / name

    def _may_be_plain(self, arguments: dict[str, Any]) -> bool:
        """Return whether files named by split may be read; a declared configuration is read as on the hub."""
        if not self.repository.is_mirrored or {"data_files", "data_dir"} & arguments.keys():
            return False
        if not set(_METADATA) & set(self.names):
            return True
        name = arguments.get("name")
        return name is not None and name not in datasets.get_dataset_config_names(str(self.folder))

    def _plain_files(self, name: str) -> dict[str, list[str]]:
        """Return the files of each split: in the folder of the configuration, else outside of folders."""
        if in_folder := self._splits(f"{name}/"):
            return in_folder
        outside = {} if set(_METADATA) & set(self.names) else self._splits("")
        if outside and self.plain_configuration not in (None, name):
            raise SetupError(
                f"{self.repository.repo_id}: the mirror has files without a folder, but the configurations "
                f"'{self.plain_configuration}' and '{name}' are read. Put the files of each into a folder of its name."
            )
        self.plain_configuration = name if outside else self.plain_configuration
        return outside

    def _splits(self, prefix: str) -> dict[str, list[str]]:
        splits: dict[str, list[str]] = {}
        for name in self.names:
            match = _PLAIN_FILE.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
            if match:
                splits.setdefault(match["split"], []).append(name)
        return splits
