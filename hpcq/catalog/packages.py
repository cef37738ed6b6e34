"""Python packages that contain models, benchmark items or calibration text (packages.toml).

A path is returned whether or not `hpcq stage` has created it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.frozen import dataclass
from hpcq.core.paths import cache_folder


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """A file in a package's wheel.

    Attributes:
        package: Name of the package.
        version: Exact version.
        path: Path inside the wheel.
        sha256: Digest of the file's content.
    """

    package: str
    version: str
    path: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The package as a requirement for pip."""
        return f"{self.package}=={self.version}"

    @property
    def staged_path(self) -> Path:
        """Path of the file in the cache."""
        return cache_folder() / "packages" / f"{self.package}-{self.version}" / self.path


@dataclass(frozen=True, kw_only=True)
class SupportFiles:
    """Further files that a task needs, in one folder of the cache."""

    folder: str
    sources: tuple[PackageFile, ...]

    @property
    def staged_path(self) -> Path:
        """Path of the folder in the cache."""
        return cache_folder() / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model that packages contain as one GGUF file.

    Attributes:
        id: Id on the hub.
        folder: Folder in the cache.
        sources: The file, or its parts in order.
        licence: Licence of the weights.
        notes: Notes for readers of its scores.
    """

    id: str
    folder: str
    sources: tuple[PackageFile, ...]
    licence: str
    notes: tuple[str, ...]
    digest: str = ""

    @property
    def staged_path(self) -> Path:
        """Path of its checkpoint in the cache."""
        return cache_folder() / "models" / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedDataset:
    """A benchmark's data set.

    Attributes:
        name: Name of the data set.
        folder: Folder in the cache.
        tasks: Tasks of lm-eval that read it.
        splits: Name and number of documents of each split; the evaluated one is first.
        sources: Files from which it is made.
        support: Further files that the tasks need.
        licence: Licence of the data.
        notes: Differences from the original data set.
    """

    name: str
    folder: str
    tasks: tuple[str, ...]
    splits: tuple[tuple[str, int], ...]
    sources: tuple[PackageFile, ...]
    support: tuple[SupportFiles, ...]
    licence: str
    notes: tuple[str, ...]

    @property
    def staged_path(self) -> Path:
        """Path in the cache of the folder with `<split>.jsonl`."""
        return cache_folder() / "data" / self.folder


@dataclass(frozen=True, kw_only=True)
class PackagedCalibration:
    """A calibration text."""

    name: str
    file: str
    source: PackageFile
    licence: str
    notes: tuple[str, ...]

    @property
    def staged_path(self) -> Path:
        """Path in the cache of the file with JSON lines `{"text": …}`."""
        return cache_folder() / "calibration" / self.file


def find_packaged_model(model_id: str) -> PackagedModel | None:
    """Return the packaged model with this id on the hub, case-insensitively; None: there is none."""
    return {name.lower(): model for name, model in _models().items()}.get(model_id.lower())


def find_packaged_dataset(task_name: str) -> PackagedDataset | None:
    """Return the packaged data set that a task of lm-eval reads; None: there is none."""
    return next((dataset for dataset in _datasets() if task_name in dataset.tasks), None)


def find_packaged_calibration(name: str) -> PackagedCalibration | None:
    """Return the packaged calibration text with this name; None: there is none."""
    return _calibration().get(name)


def staged_model_path(model_id: str) -> Path | None:
    """Return the cache path of a packaged model's checkpoint; None: it is not packaged."""
    model = find_packaged_model(model_id)
    return model.staged_path if model else None


def staged_dataset_path(task_name: str) -> Path | None:
    """Return the cache path of the folder with a task's data set; None: it is not packaged."""
    dataset = find_packaged_dataset(task_name)
    return dataset.staged_path if dataset else None


def staged_calibration_path(name: str) -> Path | None:
    """Return the cache path of a calibration text; None: it is not packaged."""
    calibration = find_packaged_calibration(name)
    return calibration.staged_path if calibration else None


def model_notes(model_id: str | None, digest: str | None) -> tuple[str, ...]:
    """Return notes for readers of a model's scores; empty if it is not from a package.

    A checkpoint from another source has the same id, so that one is known by its content.

    Args:
        model_id: Its id, if it is staged from a package; None: it has another source.
        digest: Digest of its checkpoint; None: unknown.
    """
    named = find_packaged_model(model_id) if model_id else None
    same = (one for one in _models().values() if digest and one.digest == digest)
    found = named or next(same, None)
    return found.notes if found else ()


def dataset_notes(task_name: str) -> tuple[str, ...]:
    """Return the differences between a task's packaged data set and the original; empty if it is not packaged."""
    dataset = find_packaged_dataset(task_name)
    return dataset.notes if dataset else ()


def packaged_models() -> tuple[str, ...]:
    """Return the ids of all packaged models."""
    return tuple(_models())


def packaged_tasks() -> tuple[str, ...]:
    """Return the names of all tasks of lm-eval with a packaged data set."""
    return tuple(task for dataset in _datasets() for task in dataset.tasks)


def packaged_calibrations() -> tuple[str, ...]:
    """Return the names of all packaged calibration texts."""
    return tuple(_calibration())


def nltk_data_folder() -> Path:
    """Return the folder for NLTK_DATA, which lm-eval's IFEval reads when it is imported; staged with that data set."""
    return cache_folder() / "nltk_data"


def package_files(package: str) -> tuple[PackageFile, ...]:
    """Return the files that are used from `package`."""
    row = catalog_rows("packages.toml")["packages"][package]
    return tuple(
        PackageFile(package=package, version=row["version"], path=path, sha256=sha256)
        for path, sha256 in row["files"].items()
    )


def _file(source: list[str]) -> PackageFile:
    package, path = source
    return next(file for file in package_files(package) if file.path == path)


def _files(sources: Iterable[list[str]]) -> tuple[PackageFile, ...]:
    return tuple(map(_file, sources))


@lru_cache
def _models() -> dict[str, PackagedModel]:
    return {
        name: PackagedModel(id=name, **{**row, "sources": _files(row["sources"]), "notes": tuple(row["notes"])})
        for name, row in catalog_rows("packages.toml")["models"].items()
    }


@lru_cache
def _calibration() -> dict[str, PackagedCalibration]:
    return {
        name: PackagedCalibration(name=name, **{**row, "source": _file(row["source"]), "notes": tuple(row["notes"])})
        for name, row in catalog_rows("packages.toml")["calibration"].items()
    }


@lru_cache
def _datasets() -> tuple[PackagedDataset, ...]:
    return tuple(_dataset(name, row) for name, row in catalog_rows("packages.toml")["datasets"].items())


def _dataset(name: str, row: dict[str, Any]) -> PackagedDataset:
    support = catalog_rows("packages.toml")["support"]
    return PackagedDataset(
        name=name,
        folder=row["folder"],
        tasks=tuple(row["tasks"]),
        splits=tuple(row["splits"].items()),
        sources=_files(row["sources"]),
        support=tuple(
            SupportFiles(folder=support[key]["folder"], sources=_files(support[key]["sources"]))
            for key in row.get("support", ())
        ),
        licence=row["licence"],
        notes=tuple(row["notes"]),
    )
