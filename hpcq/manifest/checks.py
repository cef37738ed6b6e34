"""Checks of a manifest against the catalog and the file system; all problems are reported together.

Each check declares the tables that it needs, so that it can run although another table is invalid. That way all
problems are reported together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.models import ModelShape, model_ids
from hpcq.catalog.plugins import environment_names
from hpcq.catalog.schemes import (
    find_scheme,
    fitting_group_size,
    indivisible_width,
    method_names,
    scheme_names,
    split_group_size,
)
from hpcq.catalog.tasks import find_task
from hpcq.catalog.tools import backends, quantizers
from hpcq.core.errors import ManifestError
from hpcq.core.work import SYNTHETIC, Scheme
from hpcq.manifest import cross_checks
from hpcq.manifest.error_messages import Problem, did_you_mean, unknown_name
from hpcq.manifest.fs_access import is_file, is_folder, path_exists, unreadable_part
from hpcq.manifest.lookups import (
    build_scheme,
    calibration_file,
    cluster_profile,
    defined_schemes,
    items_folder,
    model_id,
    model_scheme_names,
    model_shape,
    resolve_path,
    task_entries,
)
from hpcq.manifest.schema import Manifest
from hpcq.manifest.source import KeyPath

_Check = Callable[[Manifest], Iterator[Problem]]

_TEXT_SUFFIXES = (".jsonl", ".txt")


def find_problems(manifest: Manifest, valid: Collection[str] = tuple(Manifest.model_fields)) -> list[Problem]:
    """Return the problems of `manifest` without duplicates. Only the tables in `valid` are checked."""
    found = (problem for tables, check in _CHECKS if set(tables) <= set(valid) for problem in check(manifest))
    return list(dict.fromkeys(found))


def _paths(manifest: Manifest) -> Iterator[Problem]:
    for key, text in manifest.paths.model_dump().items():
        path = Path(text).expanduser().absolute()
        existing = next(part for part in (path, *path.parents) if path_exists(part))
        if not is_folder(existing):
            yield ("paths", key), f"'{text}' cannot be a folder: {existing} is a file."
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield ("paths", key), f"'{text}' cannot be written: no permission for {existing}. Choose another folder."


def _profile(manifest: Manifest) -> Iterator[Problem]:
    try:
        cluster_profile(manifest)
    except ManifestError as error:
        yield from ((("cluster", "profile"), problem) for problem in error.problems)


def _models(manifest: Manifest) -> Iterator[Problem]:
    if not manifest.models:
        yield ("models",), "is empty; name at least one model."
    seen: set[tuple[str, str | None]] = set()
    for index, entry in enumerate(manifest.models):
        key = "path" if entry.id is None else "id"
        identity = (model_id(entry).lower(), entry.revision)
        if identity in seen:
            yield ("models", index, key), f"'{model_id(entry)}' is listed twice."
        seen.add(identity)
        if entry.path is not None:
            yield from _checkpoint(index, entry.path, manifest)


def _checkpoint(index: int, text: str, manifest: Manifest) -> Iterator[Problem]:
    """Check a model's path. A missing folder is not a problem here: the model may be on another machine."""
    key_path, folder = ("models", index, "path"), resolve_path(text, manifest)
    unreadable = unreadable_part(folder / "config.json")
    if is_file(folder):
        yield key_path, f"'{text}' is a file; give the checkpoint's folder."
    elif unreadable:
        yield key_path, f"'{text}' cannot be read: no permission for {unreadable}."
    elif path_exists(folder) and not is_file(folder / "config.json"):
        yield key_path, f"'{text}' is not a checkpoint: config.json is missing."


def _model_shapes(manifest: Manifest) -> Iterator[Problem]:
    """Reject models of unknown shape, except in rehearsals."""
    for index, entry in enumerate(manifest.models):
        if entry.path is None and model_shape(entry, manifest) is None and not manifest.is_synthetic:
            name = model_id(entry)
            sentence = f"unknown model '{name}'; give the folder of its checkpoint as path."
            yield ("models", index, "id"), sentence + did_you_mean(name, model_ids())


def _definitions(manifest: Manifest) -> Iterator[Problem]:
    defined: dict[str, Scheme] = {}
    for index, definition in enumerate(manifest.schemes.define):
        key_path = ("schemes", "define", index)
        if definition.name in defined:
            yield (*key_path, "name"), f"'{definition.name}' is defined twice."
        if definition.base is not None and find_scheme(definition.base, defined) is None:
            yield (*key_path, "base"), _unknown_scheme(definition.base, defined)
            continue
        scheme = build_scheme(definition, defined)
        if scheme is None:
            yield key_path, f"'{definition.name}' is incomplete: give a base, or tool, method, weights and activations."
            continue
        defined[definition.name] = scheme
        yield from (((*key_path, key), sentence) for key, sentence in _contradictions(scheme))


def _contradictions(scheme: Scheme) -> Iterator[tuple[str, str]]:
    if scheme.method not in (offered := method_names(scheme.tool)):
        hint = f" Its methods are {', '.join(offered)}." if scheme.is_quantized else ""
        yield "method", f"'{scheme.method}' cannot be combined with tool '{scheme.tool}'.{hint}"
    is_grouped = scheme.granularity == "group"
    if is_grouped and scheme.group_size is None:
        yield "granularity", "'group' requires a group_size, such as 128."
    if not is_grouped and scheme.group_size is not None:
        yield "group_size", f"is not allowed with granularity '{scheme.granularity}'."
    gptq_methods = ("gptq", "smoothquant")
    for key, value, methods in (
        ("damping", scheme.damping, gptq_methods),
        ("activation_order", scheme.activation_order, gptq_methods),
        ("smoothing_strength", scheme.smoothing_strength, ("smoothquant",)),
    ):
        if value is not None and scheme.method not in methods:
            yield key, f"is not allowed with method '{scheme.method}', only with {' and '.join(methods)}."


def _scheme_names(manifest: Manifest) -> Iterator[Problem]:
    """Find unknown scheme names, models without schemes, and different names of the same scheme."""
    defined = defined_schemes(manifest)
    invalid = {definition.name for definition in manifest.schemes.define} - set(defined)
    for index, entry in enumerate(manifest.models):
        names = model_scheme_names(index, manifest)
        if not names:
            own_key: KeyPath = ("models", index, "schemes")
            yield (
                ("schemes", "use") if entry.schemes is None else own_key,
                f"{model_id(entry)} has no scheme; list at least one, such as 'bf16'.",
            )
        found: dict[Scheme, str] = {}
        for key_path, name in names:
            scheme = find_scheme(name, defined)
            if scheme is None and not invalid & {name, split_group_size(name)[0]}:
                yield key_path, _unknown_scheme(name, defined)
            elif scheme is not None:
                same = found.setdefault(replace(scheme, name=""), name)
                if same != name:
                    yield key_path, f"'{name}' is the same as '{same}'; list only one of them."


def _unknown_scheme(name: str, defined: Collection[str]) -> str:
    known = (*scheme_names(), *defined)
    base, group_size = split_group_size(name)
    if group_size is not None and base in known:
        return f"'{name}' does not exist: '{base}' has no groups. Use '{base}'."
    return unknown_name("scheme", name, known)


def _group_sizes(manifest: Manifest) -> Iterator[Problem]:
    defined = defined_schemes(manifest)
    for index, entry in enumerate(manifest.models):
        shape = model_shape(entry, manifest)
        for key_path, name in model_scheme_names(index, manifest):
            scheme = find_scheme(name, defined)
            width = indivisible_width(scheme, shape) if scheme and shape else None
            if scheme and shape and width:
                model = model_id(entry).rstrip("/").rsplit("/", 1)[-1]
                reason = f"'{name}' cannot quantize {model}: {width} is not a multiple of {scheme.group_size}."
                yield key_path, reason + _suggestion(name, scheme, shape)


def _suggestion(name: str, scheme: Scheme, shape: ModelShape) -> str:
    size = fitting_group_size(scheme, shape)
    return f" Try '{split_group_size(name)[0]}-g{size}'." if size else ""


def _rehearsals(manifest: Manifest) -> Iterator[Problem]:
    """Reject synthetic schemes with a real back end."""
    backend, defined = manifest.evaluate.backend, defined_schemes(manifest)
    for index in range(len(manifest.models)):
        for key_path, name in model_scheme_names(index, manifest):
            scheme = find_scheme(name, defined)
            if scheme and scheme.tool == SYNTHETIC and not manifest.is_synthetic:
                yield key_path, f"'{name}' is for rehearsals: '{backend}' cannot load it. Use backend 'synthetic'."


def _calibration(manifest: Manifest) -> Iterator[Problem]:
    key_path, dataset = ("calibration", "dataset"), manifest.calibration.dataset
    path = calibration_file(manifest)
    unreadable = unreadable_part(path or resolve_path(dataset, manifest))
    if unreadable:
        yield key_path, f"'{dataset}' cannot be read: no permission for {unreadable}."
    elif path is None and ("/" in dataset or dataset.endswith(_TEXT_SUFFIXES)):
        yield key_path, f"'{dataset}' does not exist."
    elif path is None:
        sentence = unknown_name("calibration text", dataset, packages.packaged_calibrations())
        yield key_path, f"{sentence} It may also be the path of a .jsonl or .txt file."
    elif path.suffix not in _TEXT_SUFFIXES:
        yield key_path, f"'{dataset}' is neither a .jsonl nor a .txt file."


def _tasks(manifest: Manifest) -> Iterator[Problem]:
    tasks = task_entries(manifest)
    names = [name for _, name, _ in tasks]
    if not tasks:
        yield ("tasks",), "has no tasks; add suites or use, such as use = ['arc_challenge']."
    for position, (key_path, name, _) in enumerate(tasks):
        if name in names[:position]:
            yield key_path, f"'{name}' is listed twice, here and in a suite."
    for name in manifest.tasks.options:
        if name not in names:
            yield (
                ("tasks", "options", name),
                f"'{name}' is not a task of this run; its tasks are {', '.join(dict.fromkeys(names))}.",
            )


def _data(manifest: Manifest) -> Iterator[Problem]:
    data = manifest.tasks.data
    if data not in ("hub", "packages"):
        folder = resolve_path(data, manifest)
        unreadable = unreadable_part(folder)
        if unreadable:
            yield ("tasks", "data"), f"'{data}' cannot be read: no permission for {unreadable}."
            return
        if not is_folder(folder):
            suggestion = did_you_mean(data, ("hub", "packages"))
            yield ("tasks", "data"), f"'{data}' is neither 'hub' nor 'packages' nor a folder.{suggestion}"
            return
    for key_path, name, _ in task_entries(manifest):
        yield from ((key_path, sentence) for sentence in _items_problems(name, manifest))


def _items_problems(task: str, manifest: Manifest) -> Iterator[str]:
    data, facts, folder = manifest.tasks.data, find_task(task), items_folder(task, manifest)
    if data == "packages" and folder is None:
        known = ", ".join(packages.packaged_tasks())
        yield f"no package contains items of '{task}'; available are {known}. Use data = 'hub' or a folder."
    elif data not in ("hub", "packages"):
        if facts and facts.is_group:
            yield f"'{task}' is a group of datasets, which cannot be read from one folder; use data = 'hub'."
        elif folder is None or not any(folder.glob("*.jsonl")):
            yield f"'{data}' has no items of '{task}': {resolve_path(data, manifest) / task}/<split>.jsonl is missing."


def _environments(manifest: Manifest) -> Iterator[Problem]:
    """Find environment names that are unknown in the manifest or in the profile."""
    try:
        in_profile = cluster_profile(manifest).environments
    except ManifestError:  # reported by _profile
        return
    built_in = environment_names()
    of_tools = {info.environment for info in (*quantizers().values(), *backends().values())}
    used = {"evaluate": manifest.evaluate.environment, "quantize": manifest.quantize.environment}
    for section, name in used.items():
        if name is not None and name not in (*built_in, *in_profile):
            yield (section, "environment"), unknown_name("environment", name, dict.fromkeys((*built_in, *in_profile)))
    for name in in_profile:
        if name not in (*built_in, *of_tools, *used.values()):
            sentence = unknown_name("environment", name, built_in)
            hint = "Your own environment must be used by evaluate.environment or quantize.environment."
            yield ("cluster", "profile", "environments", name), f"{sentence} {hint}"


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
    (("models", "tasks", "evaluate"), cross_checks.check_lengths),
    (("models", "schemes", "calibration"), cross_checks.check_calibration),
    (("cluster", "evaluate", "quantize"), cross_checks.check_devices),
)
