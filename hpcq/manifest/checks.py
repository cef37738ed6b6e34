"""What is wrong with a manifest that takes two of its tables, the catalog or the disk to see.

Each check says which tables it needs, so that it can run although another table is broken: all problems come at once.
Reads, never writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.models import ModelShape, model_ids
from hpcq.catalog.schemes import find_scheme, fitting_group_size, misfit, scheme_names, split_group_size
from hpcq.catalog.tasks import find_task
from hpcq.core import environments
from hpcq.core.errors import ManifestError
from hpcq.core.work import Scheme
from hpcq.manifest import cross_checks
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.fs_access import forbidden_part, is_file, is_folder, is_there
from hpcq.manifest.lookups import (
    calibration_file,
    defined_schemes,
    items_of,
    make_defined,
    name_of,
    place_of,
    profile_of,
    scheme_names_of,
    shape_of,
    tasks_of,
)
from hpcq.manifest.schema import Manifest
from hpcq.manifest.source import KeyPath
from hpcq.manifest.suggestions import did_you_mean, unknown_name

_Check = Callable[[Manifest], Iterator[Problem]]

_TEXT_SUFFIXES = (".jsonl", ".txt")


def find_problems(manifest: Manifest, whole: Collection[str] = tuple(Manifest.model_fields)) -> list[Problem]:
    """Every problem in those tables of `manifest` that are named in `whole`, each once."""
    found = (problem for needs, check in _CHECKS if set(needs) <= set(whole) for problem in check(manifest))
    return list(dict.fromkeys(found))


def _paths(manifest: Manifest) -> Iterator[Problem]:
    for key, text in manifest.paths.model_dump().items():
        path = Path(text).expanduser().absolute()
        there = next(place for place in (path, *path.parents) if is_there(place))
        if not is_folder(there):
            yield ("paths", key), f"'{text}' cannot be a folder: {there} is a file."
        elif not os.access(there, os.W_OK | os.X_OK):
            yield ("paths", key), f"'{text}' cannot be written: no permission for {there}. Choose another folder."


def _profile(manifest: Manifest) -> Iterator[Problem]:
    try:
        profile_of(manifest)
    except ManifestError as error:
        yield from ((("cluster", "profile"), problem) for problem in error.problems)


def _models(manifest: Manifest) -> Iterator[Problem]:
    if not manifest.models:
        yield ("models",), "is empty; name at least one model."
    seen: set[tuple[str, str | None]] = set()
    for index, entry in enumerate(manifest.models):
        key = "path" if entry.id is None else "id"
        identity = (name_of(entry).lower(), entry.revision)
        if identity in seen:
            yield ("models", index, key), f"'{name_of(entry)}' is listed twice."
        seen.add(identity)
        if entry.path is not None:
            yield from _checkpoint(index, entry.path, manifest)


def _checkpoint(index: int, text: str, manifest: Manifest) -> Iterator[Problem]:
    """A folder that is not there yet is no problem of the manifest: the models may lie on another machine's disk."""
    place, folder = ("models", index, "path"), place_of(text, manifest)
    forbidden = forbidden_part(folder / "config.json")
    if is_file(folder):
        yield place, f"'{text}' is a file; name the checkpoint's folder."
    elif forbidden:
        yield place, f"'{text}' cannot be read: no permission for {forbidden}."
    elif is_there(folder) and not is_file(folder / "config.json"):
        yield place, f"'{text}' is no checkpoint: it has no config.json."


def _model_shapes(manifest: Manifest) -> Iterator[Problem]:
    """A model whose shape nothing tells is refused, unless a rehearsal needs no model."""
    for index, entry in enumerate(manifest.models):
        if entry.path is None and shape_of(entry, manifest) is None and not manifest.is_rehearsal:
            name = name_of(entry)
            sentence = f"unknown model '{name}'; add the folder of its checkpoint as path."
            yield ("models", index, "id"), sentence + did_you_mean(name, model_ids())


def _definitions(manifest: Manifest) -> Iterator[Problem]:
    made: dict[str, Scheme] = {}
    for index, definition in enumerate(manifest.schemes.define):
        place = ("schemes", "define", index)
        if definition.name in made:
            yield (*place, "name"), f"'{definition.name}' is defined twice."
        if definition.base is not None and find_scheme(definition.base, made) is None:
            yield (*place, "base"), _no_scheme(definition.base, made)
            continue
        scheme = make_defined(definition, made)
        if scheme is None:
            yield place, f"'{definition.name}' says too little: name a base, or tool, method, weights and activations."
            continue
        made[definition.name] = scheme
        yield from (((*place, key), sentence) for key, sentence in _contradictions(scheme))


def _contradictions(scheme: Scheme) -> Iterator[tuple[str, str]]:
    if (scheme.tool == "none") != (scheme.method == "none"):
        yield "method", f"'{scheme.method}' and tool '{scheme.tool}' exclude each other."
    grouped = scheme.granularity == "group"
    if grouped and scheme.group_size is None:
        yield "granularity", "'group' needs a group_size, such as 128."
    if not grouped and scheme.group_size is not None:
        yield "group_size", f"has no meaning with granularity '{scheme.granularity}'."
    calibrated = ("gptq", "smoothquant")
    for key, value, methods in (
        ("damping", scheme.damping, calibrated),
        ("activation_order", scheme.activation_order, calibrated),
        ("smoothing_strength", scheme.smoothing_strength, ("smoothquant",)),
    ):
        if value is not None and scheme.method not in methods:
            yield key, f"has no meaning with method '{scheme.method}'; it belongs to {' and '.join(methods)}."


def _scheme_names(manifest: Manifest) -> Iterator[Problem]:
    """Names of schemes that stand for nothing, and models without any."""
    defined = defined_schemes(manifest)
    broken = {definition.name for definition in manifest.schemes.define} - set(defined)
    for index, entry in enumerate(manifest.models):
        names = scheme_names_of(index, manifest)
        if not names:
            own: KeyPath = ("models", index, "schemes")
            yield (
                ("schemes", "use") if entry.schemes is None else own,
                f"{name_of(entry)} has no scheme; list at least one, such as 'bf16'.",
            )
        found: dict[Scheme, str] = {}
        for place, name in names:
            scheme = find_scheme(name, defined)
            if scheme is None and not broken & {name, split_group_size(name)[0]}:
                yield place, _no_scheme(name, defined)
            elif scheme is not None:
                same = found.setdefault(replace(scheme, name=""), name)
                if same != name:
                    yield place, f"'{name}' is the same as '{same}'; list one of them."


def _no_scheme(name: str, defined: Collection[str]) -> str:
    known = (*scheme_names(), *defined)
    base, group_size = split_group_size(name)
    if group_size is not None and base in known:
        return f"'{name}' does not exist: '{base}' has no groups. Use '{base}'."
    return unknown_name("scheme", name, known)


def _group_sizes(manifest: Manifest) -> Iterator[Problem]:
    defined = defined_schemes(manifest)
    for index, entry in enumerate(manifest.models):
        shape = shape_of(entry, manifest)
        for place, name in scheme_names_of(index, manifest):
            scheme = find_scheme(name, defined)
            width = misfit(scheme, shape) if scheme and shape else None
            if scheme and shape and width:
                model = name_of(entry).rstrip("/").rsplit("/", 1)[-1]
                reason = f"'{name}' cannot quantize {model}: {width} is not a multiple of {scheme.group_size}."
                yield place, reason + _try(name, scheme, shape)


def _try(name: str, scheme: Scheme, shape: ModelShape) -> str:
    size = fitting_group_size(scheme, shape)
    return f" Try '{split_group_size(name)[0]}-g{size}'." if size else ""


def _rehearsals(manifest: Manifest) -> Iterator[Problem]:
    """Stand-ins for checkpoints and real back ends exclude each other."""
    backend, defined = manifest.evaluate.backend, defined_schemes(manifest)
    for index in range(len(manifest.models)):
        for place, name in scheme_names_of(index, manifest):
            scheme = find_scheme(name, defined)
            if scheme and scheme.tool == "synthetic" and not manifest.is_rehearsal:
                yield place, f"'{name}' is for rehearsals: '{backend}' cannot load it. Use backend 'synthetic'."


def _calibration(manifest: Manifest) -> Iterator[Problem]:
    place, dataset = ("calibration", "dataset"), manifest.calibration.dataset
    path = calibration_file(manifest)
    forbidden = forbidden_part(path or place_of(dataset, manifest))
    if forbidden:
        yield place, f"'{dataset}' cannot be read: no permission for {forbidden}."
    elif path is None and ("/" in dataset or dataset.endswith(_TEXT_SUFFIXES)):
        yield place, f"'{dataset}' cannot be read: there is no such file."
    elif path is None:
        sentence = unknown_name("calibration text", dataset, packages.calibration_names())
        yield place, f"{sentence} It may also be the path of a .jsonl or .txt file."
    elif path.suffix not in _TEXT_SUFFIXES:
        yield place, f"'{dataset}' is neither a .jsonl nor a .txt file."


def _tasks(manifest: Manifest) -> Iterator[Problem]:
    tasks = tasks_of(manifest)
    names = [name for _, name, _ in tasks]
    if not tasks:
        yield ("tasks",), "names no task; list suites or use, such as use = ['arc_challenge']."
    for position, (place, name, _) in enumerate(tasks):
        if name in names[:position]:
            yield place, f"'{name}' is listed twice, here and in a suite."
    for name in manifest.tasks.options:
        if name not in names:
            yield (
                ("tasks", "options", name),
                f"'{name}' is no task of this run, whose tasks are {', '.join(dict.fromkeys(names))}.",
            )


def _data(manifest: Manifest) -> Iterator[Problem]:
    data = manifest.tasks.data
    if data not in ("hub", "packages"):
        folder = place_of(data, manifest)
        forbidden = forbidden_part(folder)
        if forbidden:
            yield ("tasks", "data"), f"'{data}' cannot be read: no permission for {forbidden}."
            return
        if not is_folder(folder):
            known = did_you_mean(data, ("hub", "packages"))
            yield ("tasks", "data"), f"'{data}' is neither 'hub' nor 'packages' nor a folder.{known}"
            return
    for place, name, _ in tasks_of(manifest):
        yield from ((place, sentence) for sentence in _items_faults(name, manifest))


def _items_faults(task: str, manifest: Manifest) -> Iterator[str]:
    data, facts, folder = manifest.tasks.data, find_task(task), items_of(task, manifest)
    if data == "packages" and folder is None:
        known = ", ".join(packages.packaged_tasks())
        yield f"no package ships items of '{task}'; there are some of {known}. Use data = 'hub' or a folder."
    elif data not in ("hub", "packages"):
        if facts and facts.is_group:
            yield f"'{task}' is a group of data sets, which one folder cannot hold; take it from data = 'hub'."
        elif folder is None or not any(folder.glob("*.jsonl")):
            yield f"'{data}' has no items of '{task}': there is no {place_of(data, manifest) / task}/<split>.jsonl."


def _environments(manifest: Manifest) -> Iterator[Problem]:
    """Names that neither a lock nor the profile has, and the profile's that neither a lock nor the manifest has."""
    try:
        offered = profile_of(manifest).environments
    except ManifestError:  # told by the check of the profile
        return
    locked = environments.names()
    used = {"evaluate": manifest.evaluate.environment, "quantize": manifest.quantize.environment}
    for section, name in used.items():
        if name is not None and name not in (*locked, *offered):
            yield (section, "environment"), unknown_name("environment", name, dict.fromkeys((*locked, *offered)))
    for name in offered:
        if name not in (*locked, *used.values()):
            sentence = unknown_name("environment", name, locked)
            own = "One of your own must be named as evaluate.environment or quantize.environment."
            yield ("cluster", "profile", "environments", name), f"{sentence} {own}"


_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (("paths",), _paths),
    (("cluster",), _profile),
    (("models",), _models),
    (("models", "evaluate"), _model_shapes),
    (("schemes",), _definitions),
    (("models", "schemes"), _scheme_names),
    (("models", "schemes"), _group_sizes),
    (("models", "schemes", "evaluate"), _rehearsals),
    (("calibration",), _calibration),
    (("tasks",), _tasks),
    (("tasks",), _data),
    (("cluster", "evaluate", "quantize"), _environments),
    (("models", "tasks", "evaluate"), cross_checks.lengths),
    (("models", "schemes", "calibration"), cross_checks.calibration),
    (("cluster", "evaluate", "quantize"), cross_checks.devices),
)
