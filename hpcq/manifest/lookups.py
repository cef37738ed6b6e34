"""Functions that look up one name of a manifest (folder, model shape, scheme, task) in catalog and file system.

None means that a name is unknown: checks.py reports it before resolver.py runs. context.py looks up every name once.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.catalog import packages
from hpcq.catalog.architectures import architectures_of
from hpcq.catalog.checkpoint_formats import CONFIG_FILE
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape
from hpcq.catalog.number_formats import GROUP_SIZES
from hpcq.catalog.schemes import find_scheme, make_scheme
from hpcq.catalog.tasks import find_task
from hpcq.core.work_records import ScaleMapping, Scheme, Task
from hpcq.manifest.fs_access import is_file, is_folder, path_exists
from hpcq.manifest.profiles import Profile, load_profile
from hpcq.manifest.schema import Manifest, ModelEntry, SchemeDefinition, TextSection
from hpcq.manifest.value_origin import KeyPath

_REQUIRED_WITHOUT_BASE = ("tool", "method", "weights", "activations")
"""Required keys of a scheme definition without a base."""


def cluster_profile(manifest: Manifest) -> Profile:
    """Return the cluster profile.

    Raises:
        ManifestError: the profile does not exist or is invalid.
    """
    profile = manifest.cluster.profile
    return profile if isinstance(profile, Profile) else load_profile(profile, manifest.source.folder)


def resolve_path(text: str, manifest: Manifest) -> Path:
    """Return `text` as an absolute path: relative to the manifest if it exists there, else to the working directory."""
    path = Path(text).expanduser()
    near_manifest = manifest.source.folder / path
    return (near_manifest if path_exists(near_manifest) else path).absolute()


def model_id(entry: ModelEntry) -> str:
    """Return the model's id; without one, its path."""
    return entry.id or entry.path or ""


def model_name(entry: ModelEntry, folder: Path | None) -> str:
    """Return the model's id; without one, its path, of which the last part is the name of its folder.

    Args:
        entry: the model.
        folder: folder of its checkpoint.
    """
    if entry.id is not None or entry.path is None or folder is None:
        return model_id(entry)
    path = entry.path.rstrip("/")
    has_name = Path(path).name and path.rpartition("/")[2] not in (".", "..", "~")
    return path if has_name else os.path.normpath(folder)


def checkpoint_folder(entry: ModelEntry, manifest: Manifest) -> Path | None:
    """Return the folder of the model's checkpoint, which may not exist yet.

    None if the model comes from the hub, where the commit decides, or if no package contains it.
    """
    if entry.path is not None:
        return resolve_path(entry.path, manifest)
    if not entry.is_on_hub:
        return packages.staged_model_path(model_id(entry))
    mirror = manifest.data.mirror
    return resolve_path(mirror, manifest) / "models" / model_id(entry) if mirror else None


def model_shape(entry: ModelEntry, folder: Path | None) -> tuple[ModelShape | None, str | None]:
    """Return the model's shape, or None and the reason why it is unknown.

    A checkpoint's config.json has priority over the catalog, unless its family is unknown.

    Args:
        entry: the model.
        folder: folder of its checkpoint, as from `checkpoint_folder`.
    """
    from_catalog = find_model_shape(model_id(entry))
    if folder is None:
        return from_catalog, None if from_catalog else "it is not in the catalog, and not on this file system"
    try:
        return read_checkpoint_shape(folder), None
    except UnsupportedConfigError as error:
        return from_catalog, None if from_catalog else str(error)


def architectures(folder: Path | None) -> tuple[str, ...] | None:
    """Return the names of the model's classes in the config.json of its folder, which may have none; None: no file."""
    config = model_config(folder)
    return None if config is None else architectures_of(config)


def model_config(folder: Path | None) -> dict[str, Any] | None:
    """Return the config.json of a model's folder; None if there is no such JSON object."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def model_scheme_names(index: int, manifest: Manifest) -> list[tuple[KeyPath, str]]:
    """Return the names of the schemes of model number `index`, each with its key path."""
    own = manifest.models[index].schemes
    if own is None:
        return [(("schemes", "use", position), name) for position, name in enumerate(manifest.schemes.use)]
    return [(("models", index, "schemes", position), name) for position, name in enumerate(own)]


def defined_schemes(manifest: Manifest) -> dict[str, Scheme]:
    """Return the valid schemes in `schemes.define`, by name."""
    made: dict[str, Scheme] = {}
    for definition in manifest.schemes.define:
        scheme = build_scheme(definition, made)
        if scheme is not None:
            made[definition.name] = scheme
    return made


def build_scheme(definition: SchemeDefinition, earlier: dict[str, Scheme]) -> Scheme | None:
    """Return the scheme of one definition, based on the catalog or on `earlier` definitions; None if it is invalid."""
    fields = definition.model_dump(exclude={"base"}, exclude_none=True)
    if definition.mappings is not None:
        fields["mappings"] = tuple(ScaleMapping(smooth=one.smooth, balance=one.balance) for one in definition.mappings)
    base = find_scheme(definition.base, earlier) if definition.base is not None else None
    if definition.group_size is not None:
        fields.setdefault("granularity", "block" if base and base.granularity == "block" else "group")
    elif definition.weights in GROUP_SIZES and definition.granularity is None:
        fields |= {"granularity": "group", "group_size": GROUP_SIZES[definition.weights]}
    elif definition.granularity not in (None, "group", "block"):
        fields["group_size"] = None
    if definition.base is None:
        return make_scheme(**fields) if all(key in fields for key in _REQUIRED_WITHOUT_BASE) else None
    if base is None:
        return None
    merged = replace(base, **fields)
    return make_scheme(**{key: value for key, value in vars(merged).items() if key != "needs_calibration"})


def items_folder(task: str, manifest: Manifest, *, is_group: bool) -> Path | None:
    """Return the folder of the task's items, which may not exist yet; None if unknown or from the hub.

    That of a group in a folder of the user is the folder of its members' folders.
    """
    data = manifest.tasks.data
    if data == "hub":
        return None
    if data == "packages":
        return packages.staged_dataset_path(task)
    folder = resolve_path(data, manifest) if is_group else resolve_path(data, manifest) / task
    return folder if is_folder(folder) else None


def calibration_file(manifest: Manifest) -> Path | None:
    """Return the path of the calibration text, which may not be staged yet; None if the data set is unknown."""
    return text_file(manifest.calibration, manifest)


def text_file(section: TextSection, manifest: Manifest) -> Path | None:
    """Return the path of a table's text, which may not be staged yet; None if it is on the hub or unknown."""
    dataset = section.dataset
    staged = packages.staged_calibration_path(dataset)
    path = resolve_path(dataset, manifest)
    return staged or (path if is_file(path) else None)


def item_counts(task: Task, manifest: Manifest) -> tuple[int, int] | None:
    """Return the number of evaluated items and of all items of a task; None if all are evaluated or it is unknown."""
    facts = find_task(task.name)
    if facts is None or facts.is_group:
        return None
    packaged = packages.find_packaged_dataset(task.name) if manifest.tasks.data == "packages" else None
    available = packaged.splits[0][1] if packaged else facts.documents
    used = task.selected(available, 1)
    return (used, facts.documents) if used < facts.documents else None


def most_items(task: Task, subtasks: int) -> str:
    """Return an upper bound of the evaluated items of a task whose number is unknown; '': all may be evaluated."""
    facts = find_task(task.name)
    asked = task.items.count if task.items else task.limit
    if asked is None or (facts and facts.documents and asked >= facts.documents):
        return ""
    each = " of each subtask" if subtasks > 1 and not task.items else ""
    return f"at most {asked}{each}"
