"""Context of a manifest: the results of all look-ups, made once and shared by checks, resolver and lock file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.task_index import definitions_file, find_entry
from hpcq.catalog.tasks import TaskInfo
from hpcq.core.errors import ManifestError, StorageError
from hpcq.core.files import storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, hub_cache
from hpcq.core.mirror import mirror_revision, mirrored_repository
from hpcq.core.work_records import Scheme
from hpcq.manifest.checkpoints import NamedCheckpoint, PinnedFolder, named_checkpoint
from hpcq.manifest.lookups import (
    architectures,
    calibration_file,
    checkpoint_folder,
    cluster_profile,
    defined_schemes,
    items_folder,
    model_name,
    model_scheme_names,
    model_shape,
    resolve_path,
    text_file,
)
from hpcq.manifest.pins import Pins, Repository, checkpoint_repositories, model_repository
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import Manifest, ModelEntry
from hpcq.manifest.task_names import definitions_digest, ensure_task_indexes, task_entries, task_info, task_members
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
        folder: folder of its checkpoint, which may not exist yet; None if its commit on the hub is unknown.
        commit: its commit on the hub; None if it does not come from there, or if the commit is unknown.
        architectures: names of its classes in config.json; None if they are unknown.
        shape: its sizes; None if they are unknown.
        shape_error: why the sizes are unknown; None if they are known.
        schemes: its schemes, in the order of the manifest.
        checkpoints: checkpoints of it that others quantized.
    """

    entry: ModelEntry
    id: str
    folder: Path | None
    commit: str | None
    architectures: tuple[str, ...] | None
    shape: ModelShape | None
    shape_error: str | None
    schemes: tuple[NamedScheme, ...]
    checkpoints: tuple[NamedCheckpoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamedTask:
    """A task that the manifest names itself or through a suite.

    Attributes:
        key_path: key of the name.
        name: name of the task.
        num_fewshot: the suite's number of few-shot examples, if it has one.
        folder: folder of the items, or of its members' folders if it is a group; it may not exist yet. None if unknown
            or from the hub.
        info: what is known about it; None: its name is unknown.
        members: names of the tasks that it consists of.
        definitions: digest of the user's definitions, if it is one of them.
    """

    key_path: KeyPath
    name: str
    num_fewshot: int | None
    folder: Path | None
    info: TaskInfo | None
    members: tuple[str, ...]
    definitions: str | None


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
        calibration_path: the calibration text, which may not be staged yet; None if it is unknown or on the hub.
        fidelity_path: the text of the fidelity panel, in the same way; None also if there is no panel.
        pins: commits of the hub repositories; empty if they were not looked up.
        cache: folders of what is staged from the hub.
    """

    manifest: Manifest
    profile: Profile | None
    profile_problems: tuple[str, ...]
    models: tuple[NamedModel, ...]
    defined_schemes: Mapping[str, Scheme]
    tasks: tuple[NamedTask, ...]
    calibration_path: Path | None
    pins: Pins
    cache: HubCache
    fidelity_path: Path | None = None

    @property
    def cluster(self) -> Profile:
        """The cluster profile.

        Raises:
            ManifestError: it does not exist or is invalid.
        """
        if self.profile is None:
            raise ManifestError(list(self.profile_problems))
        return self.profile


def look_up(manifest: Manifest, pins: Pins | None = None) -> Context:
    """Look up the names in `manifest`. Names that are unknown have no record: checks.py reports them.

    Args:
        manifest: the manifest.
        pins: commits of its hub repositories; None if they were not looked up.

    Raises:
        SetupError: the index of lm-eval's tasks could not be made.
    """
    pins, cache = pins or Pins(), manifest_cache(manifest)
    ensure_task_indexes(manifest)
    profile, problems = _profile(manifest)
    defined = defined_schemes(manifest)
    return Context(
        manifest=manifest,
        profile=profile,
        profile_problems=problems,
        models=tuple(_model(index, manifest, defined, pins, cache) for index in range(len(manifest.models))),
        defined_schemes=defined,
        tasks=tuple(_task(key_path, name, shots, manifest) for key_path, name, shots in task_entries(manifest)),
        calibration_path=calibration_file(manifest),
        pins=pins,
        cache=cache,
        fidelity_path=text_file(manifest.fidelity, manifest) if manifest.fidelity else None,
    )


def dataset_commit(repository: Repository, context: Context) -> str | None:
    """Return the commit of a data set, or what identifies it in the mirror; None: unknown, or the mirror lacks it."""
    mirror = context.manifest.data.mirror
    if mirror is None or context.manifest.is_synthetic:
        return context.pins.commit(repository)
    folder = mirrored_repository(resolve_path(mirror, context.manifest), repository.kind, repository.id)
    return mirror_revision(folder) if folder else None


def manifest_cache(manifest: Manifest) -> HubCache:
    """Return the folders of what is staged from the hub."""
    root = manifest.paths.cache
    return hub_cache(Path(root).expanduser().absolute() if root else None)


@contextlib.contextmanager
def cache_errors(manifest: Manifest) -> Iterator[None]:
    """Name `paths.cache` in the file system's errors about files in it.

    Raises:
        StorageError: As raised in the block; the message begins with the key.
    """
    folder = manifest_cache(manifest).hub.parent
    try:
        with storage_errors(folder):
            yield
    except StorageError as error:
        cause = error.__cause__
        named = isinstance(cause, OSError) and cause.filename
        if manifest.paths.cache is None or not named or not Path(named).is_relative_to(folder):
            raise
        raise StorageError(manifest.source.message(("paths", "cache"), str(error))) from cause


def _profile(manifest: Manifest) -> tuple[Profile | None, tuple[str, ...]]:
    try:
        return cluster_profile(manifest), ()
    except ManifestError as error:
        return None, error.problems


def _task(key_path: KeyPath, name: str, shots: int | None, manifest: Manifest) -> NamedTask:
    info, digest = task_info(name, manifest), definitions_digest(manifest)
    is_own = digest is not None and find_entry(definitions_file(digest), name) is not None
    return NamedTask(
        key_path=key_path,
        name=name,
        num_fewshot=shots,
        folder=items_folder(name, manifest, is_group=info is not None and info.is_group),
        info=info,
        members=task_members(name, manifest),
        definitions=digest if is_own else None,
    )


def _snapshots(entry: ModelEntry, pins: Pins, cache: HubCache) -> dict[str, PinnedFolder]:
    """Return the checkpoints on the hub whose commit is known, by their text in the manifest."""
    found = {}
    for text, repository in checkpoint_repositories(entry).items():
        commit = pins.commit(repository)
        if commit is not None:
            folder = cache.snapshot(repository.kind, repository.id, commit)
            found[text] = PinnedFolder(revision=commit, folder=folder)
    return found


def _mirrored_checkpoints(entry: ModelEntry, manifest: Manifest) -> tuple[str, ...]:
    """Return the texts in `checkpoints`, with the folder in the mirror instead of an id on the hub."""
    mirror, on_hub = manifest.data.mirror, checkpoint_repositories(entry)
    if mirror is None:
        return entry.checkpoints
    models = resolve_path(mirror, manifest) / "models"
    return tuple(str(models / on_hub[text].id) if text in on_hub else text for text in entry.checkpoints)


def _model(index: int, manifest: Manifest, defined: Mapping[str, Scheme], pins: Pins, cache: HubCache) -> NamedModel:
    entry = manifest.models[index]
    folder, commit = checkpoint_folder(entry, manifest), None
    if folder is None and entry.is_on_hub:
        repository = model_repository(entry)
        commit = pins.commit(repository)
        folder = cache.snapshot(repository.kind, repository.id, commit) if commit else None
    shape, error = model_shape(entry, folder)
    snapshots = _snapshots(entry, pins, cache)
    checkpoints = tuple(
        named_checkpoint(
            ("models", index, "checkpoints", position), text, resolve_path(text, manifest), shape, folder, snapshots
        )
        for position, text in enumerate(_mirrored_checkpoints(entry, manifest))
    )
    if shape is None:
        shape = next((one.shape for one in checkpoints if one.shape), None)
        error = None if shape else error
    return NamedModel(
        entry=entry,
        id=model_name(entry, folder),
        folder=folder,
        commit=commit,
        architectures=architectures(folder),
        shape=shape,
        shape_error=error,
        schemes=tuple(
            NamedScheme(key_path=key_path, name=name, scheme=find_scheme(name, defined))
            for key_path, name in model_scheme_names(index, manifest)
        ),
        checkpoints=checkpoints,
    )
