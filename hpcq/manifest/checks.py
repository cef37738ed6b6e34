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
from hpcq.catalog.models import model_ids
from hpcq.catalog.plugins import environment_names
from hpcq.catalog.schemes import find_scheme, group_size_problem, method_names, scheme_names, split_group_size
from hpcq.catalog.tasks import find_task
from hpcq.catalog.tools import backends, quantizers
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import SYNTHETIC, Scheme
from hpcq.manifest import contradictions
from hpcq.manifest.context import Context, NamedTask, look_up
from hpcq.manifest.error_messages import Problem, did_you_mean, unknown_name
from hpcq.manifest.fs_access import is_file, is_folder, path_exists, unreadable_part
from hpcq.manifest.lookups import build_scheme, resolve_path
from hpcq.manifest.schema import Manifest
from hpcq.manifest.value_origin import KeyPath

_Check = Callable[[Context], Iterator[Problem]]

_TEXT_SUFFIXES = (".jsonl", ".txt")


def check_manifest(manifest: Manifest) -> Context:
    """Look up the names in `manifest`, and check it.

    Raises:
        ManifestError: it has problems; one sentence per problem.
    """
    context = look_up(manifest)
    problems = find_problems(context)
    if problems:
        raise ManifestError([manifest.source.message(*problem) for problem in problems])
    return context


def find_problems(context: Context, valid: Collection[str] = tuple(Manifest.model_fields)) -> list[Problem]:
    """Return the problems of the manifest without duplicates. Only the tables in `valid` are checked."""
    found = (problem for tables, check in _CHECKS if set(tables) <= set(valid) for problem in check(context))
    return list(dict.fromkeys(found))


def _paths(context: Context) -> Iterator[Problem]:
    for key, text in context.manifest.paths.model_dump().items():
        path = Path(text).expanduser().absolute()
        existing = next(part for part in (path, *path.parents) if path_exists(part))
        if not is_folder(existing):
            yield ("paths", key), f"'{text}' cannot be a folder: {existing} is a file."
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield ("paths", key), f"'{text}' cannot be written: no permission for {existing}. Choose another folder."


def _profile(context: Context) -> Iterator[Problem]:
    yield from ((("cluster", "profile"), problem) for problem in context.profile_problems)


def _models(context: Context) -> Iterator[Problem]:
    if not context.models:
        yield ("models",), "is empty; name at least one model."
    seen: set[tuple[str, str | None]] = set()
    for index, model in enumerate(context.models):
        entry = model.entry
        key = "path" if entry.id is None else "id"
        identity = (model.id.lower(), entry.revision)
        if identity in seen:
            yield ("models", index, key), f"'{model.id}' is listed twice."
        seen.add(identity)
        if entry.path is not None:
            yield from _checkpoint(index, entry.path, context.manifest)


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


def _model_shapes(context: Context) -> Iterator[Problem]:
    """Reject models of unknown shape, except in rehearsals."""
    for index, model in enumerate(context.models):
        if model.entry.path is None and model.shape is None and not context.manifest.is_synthetic:
            sentence = f"unknown model '{model.id}'; give the folder of its checkpoint as path."
            yield ("models", index, "id"), sentence + did_you_mean(model.id, model_ids())


def _definitions(context: Context) -> Iterator[Problem]:
    defined: dict[str, Scheme] = {}
    for index, definition in enumerate(context.manifest.schemes.define):
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


def _scheme_names(context: Context) -> Iterator[Problem]:
    """Find unknown scheme names, models without schemes, and different names of the same scheme."""
    defined = context.defined_schemes
    invalid = {definition.name for definition in context.manifest.schemes.define} - set(defined)
    for index, model in enumerate(context.models):
        if not model.schemes:
            own_key: KeyPath = ("models", index, "schemes")
            yield (
                ("schemes", "use") if model.entry.schemes is None else own_key,
                f"{model.id} has no scheme; list at least one, such as 'bf16'.",
            )
        found: dict[Scheme, str] = {}
        for use in model.schemes:
            if use.scheme is None and not invalid & {use.name, split_group_size(use.name)[0]}:
                yield use.key_path, _unknown_scheme(use.name, defined)
            elif use.scheme is not None:
                same = found.setdefault(replace(use.scheme, name=""), use.name)
                if same != use.name:
                    yield use.key_path, f"'{use.name}' is the same as '{same}'; list only one of them."


def _unknown_scheme(name: str, defined: Collection[str]) -> str:
    known = (*scheme_names(), *defined)
    base, group_size = split_group_size(name)
    if group_size is not None and base in known:
        return f"'{name}' does not exist: '{base}' has no groups. Use '{base}'."
    return unknown_name("scheme", name, known)


def _group_sizes(context: Context) -> Iterator[Problem]:
    for model in context.models:
        for use in model.schemes:
            problem = group_size_problem(use.scheme, model.shape) if use.scheme and model.shape else None
            if problem:
                yield use.key_path, problem.sentence(model.id)


def _rehearsals(context: Context) -> Iterator[Problem]:
    """Reject synthetic schemes with a real backend."""
    backend = context.manifest.evaluate.backend
    for model in context.models:
        for use in model.schemes:
            if use.scheme and use.scheme.tool == SYNTHETIC and not context.manifest.is_synthetic:
                sentence = f"'{use.name}' is for rehearsals: '{backend}' cannot load it. Use backend 'synthetic'."
                yield use.key_path, sentence


def _calibration(context: Context) -> Iterator[Problem]:
    key_path, dataset, path = ("calibration", "dataset"), context.manifest.calibration.dataset, context.calibration_path
    unreadable = unreadable_part(path or resolve_path(dataset, context.manifest))
    if unreadable:
        yield key_path, f"'{dataset}' cannot be read: no permission for {unreadable}."
    elif path is None and ("/" in dataset or dataset.endswith(_TEXT_SUFFIXES)):
        yield key_path, f"'{dataset}' does not exist."
    elif path is None:
        sentence = unknown_name("calibration text", dataset, packages.packaged_calibrations())
        yield key_path, f"{sentence} It may also be the path of a .jsonl or .txt file."
    elif path.suffix not in _TEXT_SUFFIXES:
        yield key_path, f"'{dataset}' is neither a .jsonl nor a .txt file."


def _tasks(context: Context) -> Iterator[Problem]:
    names = [task.name for task in context.tasks]
    if not names:
        yield ("tasks",), "has no tasks; add suites or use, such as use = ['arc_challenge']."
    for position, task in enumerate(context.tasks):
        if task.name in names[:position]:
            yield task.key_path, f"'{task.name}' is listed twice, here and in a suite."
    for name in context.manifest.tasks.options:
        if name not in names:
            yield (
                ("tasks", "options", name),
                f"'{name}' is not a task of this run; its tasks are {', '.join(dict.fromkeys(names))}.",
            )


def _data(context: Context) -> Iterator[Problem]:
    data = context.manifest.tasks.data
    if data not in ("hub", "packages"):
        folder = resolve_path(data, context.manifest)
        unreadable = unreadable_part(folder)
        if unreadable:
            yield ("tasks", "data"), f"'{data}' cannot be read: no permission for {unreadable}."
            return
        if not is_folder(folder):
            suggestion = did_you_mean(data, ("hub", "packages"))
            yield ("tasks", "data"), f"'{data}' is neither 'hub' nor 'packages' nor a folder.{suggestion}"
            return
    for task in context.tasks:
        yield from ((task.key_path, sentence) for sentence in _items_problems(task, context.manifest))


def _items_problems(task: NamedTask, manifest: Manifest) -> Iterator[str]:
    data, facts, name = manifest.tasks.data, find_task(task.name), task.name
    if data == "packages" and task.folder is None:
        known = ", ".join(packages.packaged_tasks())
        yield f"no package contains items of '{name}'; available are {known}. Use data = 'hub' or a folder."
    elif data not in ("hub", "packages"):
        if facts and facts.is_group:
            yield f"'{name}' is a group of datasets, which cannot be read from one folder; use data = 'hub'."
        elif task.folder is None or not any(task.folder.glob("*.jsonl")):
            yield f"'{data}' has no items of '{name}': {resolve_path(data, manifest) / name}/<split>.jsonl is missing."


def _environments(context: Context) -> Iterator[Problem]:
    """Find environment names that are unknown in the manifest or in the profile."""
    if context.profile is None:  # reported by _profile
        return
    manifest, in_profile = context.manifest, context.profile.environments
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
    (("models", "tasks", "evaluate"), contradictions.check_lengths),
    (("models", "schemes", "calibration"), contradictions.check_calibration),
    (("cluster", "evaluate", "quantize"), contradictions.check_devices),
)
