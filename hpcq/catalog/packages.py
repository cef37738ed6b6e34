"""What public packages ship, as data: a model, benchmark items, calibration text; and where in the cache each lies.

Knows names, versions, digests and places; fetches nothing, and looks at nothing on disk but its rows, packages.toml.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.cache import cache_folder


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file in a package's wheel. `sha256` is of its content."""

    package: str
    version: str
    path: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The package as pip is asked for it."""
        return f"{self.package}=={self.version}"

    @property
    def staged(self) -> Path:
        """Where the file is or will be in the cache."""
        return cache_folder() / "packages" / f"{self.package}-{self.version}" / self.path


@dataclass(frozen=True, kw_only=True)
class Support:
    """Files that a task needs beside its items, put in one folder of the cache."""

    folder: str
    sources: tuple[Member, ...]

    @property
    def staged(self) -> Path:
        """Where the folder is or will be in the cache."""
        return cache_folder() / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model that a package ships as one GGUF file."""

    id: str
    folder: str
    source: Member
    licence: str
    notes: tuple[str, ...]

    @property
    def staged(self) -> Path:
        """Where its checkpoint is or will be in the cache."""
        return cache_folder() / "models" / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedItems:
    """A benchmark's items. `splits`: name and number of documents; `notes`: how they differ from the original."""

    name: str
    folder: str
    tasks: tuple[str, ...]
    splits: tuple[tuple[str, int], ...]
    sources: tuple[Member, ...]
    support: tuple[Support, ...]
    licence: str
    notes: tuple[str, ...]

    @property
    def staged(self) -> Path:
        """Where the folder with `<split>.jsonl` is or will be in the cache."""
        return cache_folder() / "data" / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedCalibration:
    """Calibration text."""

    name: str
    file: str
    source: Member
    licence: str
    notes: tuple[str, ...]

    @property
    def staged(self) -> Path:
        """Where the file of JSON lines `{"text": …}` is or will be in the cache."""
        return cache_folder() / "calibration" / self.file


def find_model(model_id: str) -> PackagedModel | None:
    """The model of that id on the hub; None: no package ships it. Capital letters do not matter, as on the hub."""
    return {name.lower(): model for name, model in _models().items()}.get(model_id.lower())


def find_items(task_name: str) -> PackagedItems | None:
    """The items that lm-eval's task of that name reads; None: no package ships them."""
    return next((items for items in _items() if task_name in items.tasks), None)


def find_calibration(name: str) -> PackagedCalibration | None:
    """The calibration text of that name; None: no package ships it."""
    return _calibration().get(name)


def staged_model(model_id: str) -> Path | None:
    """Where the model's checkpoint is or will be in the cache; None: no package ships it."""
    model = find_model(model_id)
    return model.staged if model else None


def staged_items(task_name: str) -> Path | None:
    """Where the folder with the task's items is or will be in the cache; None: no package ships them."""
    items = find_items(task_name)
    return items.staged if items else None


def staged_calibration(name: str) -> Path | None:
    """Where the calibration text is or will be in the cache; None: no package ships it."""
    calibration = find_calibration(name)
    return calibration.staged if calibration else None


def model_notes(model_id: str) -> tuple[str, ...]:
    """What a reader must know of the model's scores; empty where no package ships it."""
    model = find_model(model_id)
    return model.notes if model else ()


def items_notes(task_name: str) -> tuple[str, ...]:
    """How the task's packaged items differ from the original; empty where they do not, or no package ships them."""
    items = find_items(task_name)
    return items.notes if items else ()


def model_names() -> tuple[str, ...]:
    """Every model that a package ships."""
    return tuple(_models())


def packaged_tasks() -> tuple[str, ...]:
    """Every task of lm-eval's whose items a package ships."""
    return tuple(task for items in _items() for task in items.tasks)


def calibration_names() -> tuple[str, ...]:
    """Every calibration text that a package ships."""
    return tuple(_calibration())


def nltk_data() -> Path:
    """The folder that NLTK_DATA must name where lm-eval's IFEval is imported; staged with that task's items."""
    return cache_folder() / "nltk_data"


def members_of(package: str) -> tuple[Member, ...]:
    """Every file that is used of `package`."""
    row = catalog_rows("packages.toml")["packages"][package]
    return tuple(
        Member(package=package, version=row["version"], path=path, sha256=sha256)
        for path, sha256 in row["members"].items()
    )


def _member(source: list[str]) -> Member:
    package, path = source
    return next(member for member in members_of(package) if member.path == path)


def _members(sources: Iterable[list[str]]) -> tuple[Member, ...]:
    return tuple(map(_member, sources))


@lru_cache
def _models() -> dict[str, PackagedModel]:
    return {
        name: PackagedModel(id=name, **{**row, "source": _member(row["source"]), "notes": tuple(row["notes"])})
        for name, row in catalog_rows("packages.toml")["models"].items()
    }


@lru_cache
def _calibration() -> dict[str, PackagedCalibration]:
    return {
        name: PackagedCalibration(name=name, **{**row, "source": _member(row["source"]), "notes": tuple(row["notes"])})
        for name, row in catalog_rows("packages.toml")["calibration"].items()
    }


@lru_cache
def _items() -> tuple[PackagedItems, ...]:
    return tuple(_items_of(name, row) for name, row in catalog_rows("packages.toml")["items"].items())


def _items_of(name: str, row: dict[str, Any]) -> PackagedItems:
    support = catalog_rows("packages.toml")["support"]
    return PackagedItems(
        name=name,
        folder=row["folder"],
        tasks=tuple(row["tasks"]),
        splits=tuple(row["splits"].items()),
        sources=_members(row["sources"]),
        support=tuple(
            Support(folder=support[key]["folder"], sources=_members(support[key]["sources"]))
            for key in row.get("support", ())
        ),
        licence=row["licence"],
        notes=tuple(row["notes"]),
    )
