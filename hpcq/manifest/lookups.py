"""What the names in a manifest stand for: folders, shapes, schemes, tasks. Each is looked up here, and nowhere else.

Looks at the catalog and at the file system, changes neither. None means that a name stands for nothing; checks.py turns
that into a sentence, and resolving.py comes after it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.configs import CannotSize, read_shape, shape_of_checkpoint
from hpcq.catalog.models import ModelShape, find_shape
from hpcq.catalog.schemes import find_scheme, make_scheme
from hpcq.catalog.tasks import find_suite, find_task
from hpcq.core.work import Scheme
from hpcq.manifest.fs_access import is_file, is_folder, is_there
from hpcq.manifest.profiles import Profile, load_profile
from hpcq.manifest.schema import Manifest, ModelEntry, SchemeDefinition
from hpcq.manifest.source import KeyPath

_WHOLE = ("tool", "method", "weights", "activations")
"""What a definition without a base must say."""


def profile_of(manifest: Manifest) -> Profile:
    """The cluster's profile.

    Raises:
        ManifestError: there is none of that name, or it is wrong.
    """
    profile = manifest.cluster.profile
    return profile if isinstance(profile, Profile) else load_profile(profile, manifest.source.folder)


def place_of(text: str, manifest: Manifest) -> Path:
    """The absolute path of what the manifest names: beside it if it is there, else in the working directory."""
    path = Path(text).expanduser()
    beside = manifest.source.folder / path
    return (beside if is_there(beside) else path).absolute()


def name_of(entry: ModelEntry) -> str:
    """The model's id; a model named by its path alone has the path for an id."""
    return entry.id or entry.path or ""


def folder_of(entry: ModelEntry, manifest: Manifest) -> Path | None:
    """Where the model's checkpoint is or will be on this file system; None: it comes from the hub."""
    if entry.path is not None:
        return place_of(entry.path, manifest)
    return packages.staged_model(name_of(entry)) if entry.revision is None else None


def shape_of(entry: ModelEntry, manifest: Manifest) -> ModelShape | None:
    """The model's shape: the catalog's for a model by id, config.json's for one by path; else the other one."""
    folder = folder_of(entry, manifest)
    stated = shape_of_checkpoint(folder) if folder else None
    known = find_shape(name_of(entry))
    return stated or known if entry.path is not None else known or stated


def why_unsized(entry: ModelEntry, manifest: Manifest) -> str | None:
    """Why the model's shape is not known; None: it is."""
    if shape_of(entry, manifest) is not None:
        return None
    folder = folder_of(entry, manifest)
    if folder is None:
        return "the catalog does not have it, and it is not on this file system"
    try:
        read_shape(folder)
    except CannotSize as problem:
        return str(problem)
    return None


def scheme_names_of(index: int, manifest: Manifest) -> list[tuple[KeyPath, str]]:
    """The names of the schemes of model number `index`, each with the place where it stands."""
    own = manifest.models[index].schemes
    if own is None:
        return [(("schemes", "use", position), name) for position, name in enumerate(manifest.schemes.use)]
    return [(("models", index, "schemes", position), name) for position, name in enumerate(own)]


def defined_schemes(manifest: Manifest) -> dict[str, Scheme]:
    """The schemes that the manifest defines, by name; those that cannot be made are left out."""
    made: dict[str, Scheme] = {}
    for definition in manifest.schemes.define:
        scheme = make_defined(definition, made)
        if scheme is not None:
            made[definition.name] = scheme
    return made


def make_defined(definition: SchemeDefinition, earlier: dict[str, Scheme]) -> Scheme | None:
    """The scheme of one definition, its base from the catalog or among `earlier` ones; None: it cannot be made."""
    fields = definition.model_dump(exclude={"base"}, exclude_none=True)
    if definition.group_size is not None:
        fields.setdefault("granularity", "group")
    elif definition.granularity not in (None, "group"):
        fields["group_size"] = None
    if definition.base is None:
        return make_scheme(**fields) if all(key in fields for key in _WHOLE) else None
    base = find_scheme(definition.base, earlier)
    if base is None:
        return None
    merged = replace(base, **fields)
    return make_scheme(**{key: value for key, value in vars(merged).items() if key != "needs_calibration"})


def tasks_of(manifest: Manifest) -> list[tuple[KeyPath, str, int | None]]:
    """Every task: the place that names it, its name, and the number of few-shot examples that its suite says."""
    found: list[tuple[KeyPath, str, int | None]] = []
    for position, name in enumerate(manifest.tasks.suites):
        suite = find_suite(name)
        found += [(("tasks", "suites", position), task, shots) for task, shots in suite.tasks] if suite else []
    found += [(("tasks", "use", position), name, None) for position, name in enumerate(manifest.tasks.use)]
    return found


def items_of(task: str, manifest: Manifest) -> Path | None:
    """Where the task's items are or will be on this file system; None: nowhere, or they come from the hub."""
    data = manifest.tasks.data
    if data == "hub":
        return None
    if data == "packages":
        return packages.staged_items(task)
    folder = place_of(data, manifest) / task
    return folder if is_folder(folder) else None


def calibration_file(manifest: Manifest) -> Path | None:
    """Where the calibration text is or will be; None: no package ships one of that name, and there is no such file."""
    dataset = manifest.calibration.dataset
    staged = packages.staged_calibration(dataset)
    path = place_of(dataset, manifest)
    return staged or (path if is_file(path) else None)


def items_used(task: str, limit: int | None, manifest: Manifest) -> tuple[int, int] | None:
    """How many of the task's items are evaluated, and how many the full set has; None: all, or not to be known."""
    facts = find_task(task)
    if facts is None or facts.is_group:
        return None
    packaged = packages.find_items(task) if manifest.tasks.data == "packages" else None
    available = packaged.splits[0][1] if packaged else facts.items
    used = min(limit or available, available)
    return (used, facts.items) if used < facts.items else None
