"""Context of a manifest: the results of all look-ups, made once and shared by checks, resolver and lock file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcq.catalog.models import ModelShape
from hpcq.catalog.schemes import find_scheme
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import Scheme
from hpcq.manifest.lookups import (
    calibration_file,
    checkpoint_folder,
    cluster_profile,
    defined_schemes,
    items_folder,
    model_id,
    model_scheme_names,
    model_shape,
    task_entries,
)
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import Manifest, ModelEntry
from hpcq.manifest.value_origin import KeyPath


@dataclass(frozen=True, kw_only=True)
class NamedScheme:
    """A scheme that the manifest names for a model.

    Attributes:
        key_path: key of the name.
        name: the name.
        scheme: its record; None if the name is unknown or its definition is invalid.
    """

    key_path: KeyPath
    name: str
    scheme: Scheme | None


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of the manifest.

    Attributes:
        entry: its table.
        id: its id; without one, its path.
        folder: folder of its checkpoint, which may not exist yet; None if it comes from the hub.
        shape: its sizes; None if they are unknown.
        shape_error: why the sizes are unknown; None if they are known.
        schemes: its schemes, in the order of the manifest.
    """

    entry: ModelEntry
    id: str
    folder: Path | None
    shape: ModelShape | None
    shape_error: str | None
    schemes: tuple[NamedScheme, ...]


@dataclass(frozen=True, kw_only=True)
class NamedTask:
    """A task that the manifest names itself or through a suite.

    Attributes:
        key_path: key of the name.
        name: name of the task.
        num_fewshot: the suite's number of few-shot examples, if it has one.
        folder: folder of the items, which may not exist yet; None if unknown or from the hub.
    """

    key_path: KeyPath
    name: str
    num_fewshot: int | None
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class Context:
    """A manifest and what its names refer to.

    Attributes:
        manifest: the manifest.
        profile: the cluster profile; None if it does not exist or is invalid.
        profile_problems: why there is no profile.
        models: one per entry of `models`.
        defined_schemes: the valid schemes in `schemes.define`, by name.
        tasks: all tasks, those of suites first.
        calibration_path: the calibration text, which may not be staged yet; None if the dataset is unknown.
    """

    manifest: Manifest
    profile: Profile | None
    profile_problems: tuple[str, ...]
    models: tuple[NamedModel, ...]
    defined_schemes: Mapping[str, Scheme]
    tasks: tuple[NamedTask, ...]
    calibration_path: Path | None

    @property
    def cluster(self) -> Profile:
        """The cluster profile.

        Raises:
            ManifestError: it does not exist or is invalid.
        """
        if self.profile is None:
            raise ManifestError(list(self.profile_problems))
        return self.profile


def look_up(manifest: Manifest) -> Context:
    """Look up the names in `manifest`. Names that are unknown have no record: checks.py reports them."""
    profile, problems = _profile(manifest)
    defined = defined_schemes(manifest)
    return Context(
        manifest=manifest,
        profile=profile,
        profile_problems=problems,
        models=tuple(_model(index, manifest, defined) for index in range(len(manifest.models))),
        defined_schemes=defined,
        tasks=tuple(
            NamedTask(key_path=key_path, name=name, num_fewshot=shots, folder=items_folder(name, manifest))
            for key_path, name, shots in task_entries(manifest)
        ),
        calibration_path=calibration_file(manifest),
    )


def _profile(manifest: Manifest) -> tuple[Profile | None, tuple[str, ...]]:
    try:
        return cluster_profile(manifest), ()
    except ManifestError as error:
        return None, error.problems


def _model(index: int, manifest: Manifest, defined: Mapping[str, Scheme]) -> NamedModel:
    entry = manifest.models[index]
    folder = checkpoint_folder(entry, manifest)
    shape, error = model_shape(entry, folder)
    return NamedModel(
        entry=entry,
        id=model_id(entry),
        folder=folder,
        shape=shape,
        shape_error=error,
        schemes=tuple(
            NamedScheme(key_path=key_path, name=name, scheme=find_scheme(name, defined))
            for key_path, name in model_scheme_names(index, manifest)
        ),
    )
