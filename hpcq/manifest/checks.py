"""Checks of a manifest against the catalog and the file system; all problems are reported together.

Each check declares the tables that it needs, so that it can run although another table is invalid. That way all
problems are reported together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.architectures import text_problem
from hpcq.catalog.checkpoint_formats import CheckpointFormatError, find_declaration
from hpcq.catalog.checkpoint_problems import ADAPTER_FILE, IS_ADAPTER, is_adapter, missing_config
from hpcq.catalog.format_problems import format_problem
from hpcq.catalog.ignored_layers import entry_problem, head_name, ignore_problem, linear_names, matches
from hpcq.catalog.make_task_index import NO_ENVIRONMENT
from hpcq.catalog.models import model_ids
from hpcq.catalog.plugins import environment_names
from hpcq.catalog.schemes import (
    find_scheme,
    group_size_problem,
    method_names,
    scheme_names,
    split_group_size,
    without_default_tool,
)
from hpcq.catalog.tool_limits import scheme_problems, width_problem
from hpcq.catalog.tools import backends, quantizers
from hpcq.catalog.unquantized_modules import LLMCOMPRESSOR, quantization_problem
from hpcq.catalog.weight_files import ambiguous_weights
from hpcq.core.errors import ManifestError
from hpcq.core.modulefiles import PREFIX
from hpcq.core.work_records import SYNTHETIC, UNQUANTIZED, Scheme
from hpcq.manifest import calibration_checks, contradictions, fidelity_checks, prompt_checks
from hpcq.manifest.checkpoint_damage import check_code, check_files, check_generation
from hpcq.manifest.checkpoints import NamedCheckpoint, is_folder_text
from hpcq.manifest.context import Context, NamedModel, NamedTask, look_up
from hpcq.manifest.error_messages import Problem, did_you_mean, unknown_name
from hpcq.manifest.fs_access import is_file, is_folder, path_exists, unreadable_part
from hpcq.manifest.item_documents import check_items
from hpcq.manifest.item_files import check_selections
from hpcq.manifest.lookups import build_scheme, model_config, resolve_path
from hpcq.manifest.pins import Pin, Pins, model_repository
from hpcq.manifest.schema import DATA_SOURCES, Manifest
from hpcq.manifest.task_checks import check_definitions, check_names
from hpcq.manifest.value_origin import KeyPath

_Check = Callable[[Context], Iterator[Problem]]


def check_manifest(manifest: Manifest, pins: Pins | None = None) -> Context:
    """Look up the names in `manifest`, and check it. `pins`: as for `look_up`.

    Raises:
        ManifestError: it has problems; one sentence per problem.
    """
    context = look_up(manifest, pins)
    problems = find_problems(context)
    if problems:
        raise ManifestError([manifest.source.message(*problem) for problem in problems])
    return context


def find_problems(context: Context, valid: Collection[str] = tuple(Manifest.model_fields)) -> list[Problem]:
    """Return the problems of the manifest without duplicates. Only the tables in `valid` are checked."""
    found = (problem for tables, check in _CHECKS if set(tables) <= set(valid) for problem in check(context))
    return list(dict.fromkeys(found))


def _paths(context: Context) -> Iterator[Problem]:
    folders = context.manifest.paths.model_dump(exclude_none=True, exclude={"trusted_users", "trusted_groups"})
    for key, text in folders.items():
        path = Path(text).expanduser().absolute()
        existing = next(part for part in (path, *path.parents) if path_exists(part))
        if not is_folder(existing):
            yield ("paths", key), f"'{text}' cannot be a folder: {existing} is a file."
        elif key == "cache" and existing == path and os.access(path, os.R_OK | os.X_OK):
            continue  # another user may have staged everything there
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
        # A branch and its commit are the same. The hub ignores case, file systems may not.
        identity = (model.id.lower() if entry.is_on_hub else model.id, model.commit or entry.revision)
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
        yield key_path, f"'{text}' {missing_config(folder)}"
    elif is_adapter(folder):
        yield key_path, f"'{text}' {IS_ADAPTER}"
    elif problem := ambiguous_weights(folder):
        yield key_path, f"'{text}' {problem}"


def _quantized_bases(context: Context) -> Iterator[Problem]:
    """Reject a quantized checkpoint as a base checkpoint: it would be evaluated as unquantized, or quantized again."""
    for index, model in enumerate(context.models):
        if not model.schemes or model.folder is None or model_config(model.folder) is None:
            continue
        key_path = ("models", index, "id" if model.entry.path is None else "path")
        try:
            declaration = find_declaration(model.folder)
        except CheckpointFormatError as error:
            yield key_path, f"'{model.id}': {str(error).removesuffix('.')}: correct or remove it ({model.folder})."
            continue
        if declaration is not None:
            text = model.entry.path or model.id
            text = text if model.entry.path is None or is_folder_text(text) else f"./{text}"
            sentence = (
                f"'{model.id}' is a quantized checkpoint ({declaration.settings['quant_method']}): give its base model"
                f" as id or path, with checkpoints = ['{text}'], and schemes = [] if the base is not evaluated."
            )
            yield key_path, sentence


def _causal_models(context: Context) -> Iterator[Problem]:
    """Reject encoders, embedding models and classifiers: they would be loaded as causal language models."""
    for index, model in enumerate(context.models):
        problem = text_problem(model_config(model.folder) or {}) if model.schemes else None
        if problem and not context.manifest.is_synthetic:
            key = "path" if model.entry.id is None else "id"
            yield ("models", index, key), f"'{model.id}' cannot be evaluated: {problem}. Use a causal language model."


def _checkpoints(context: Context) -> Iterator[Problem]:
    for index, model in enumerate(context.models):
        seen: set[str] = set()
        for requested, named in zip(model.entry.checkpoints, model.checkpoints, strict=True):
            identity = str(named.folder) if named.folder else named.text
            if identity in seen:
                yield named.key_path, f"'{named.text}' is listed twice: another text names the same checkpoint."
            seen.add(identity)
            if named.problem:
                yield named.key_path, f"'{named.text}'{named.problem}"
            elif not named.is_on_hub and not is_folder(named.folder or Path()) and not context.manifest.is_synthetic:
                yield named.key_path, _no_folder(requested, named)
            elif named.is_on_hub and named.text.partition("@")[0].count("/") != 1:
                hint = f"For a folder, write './{named.text}'."
                yield named.key_path, f"'{named.text}' is not an id on the hub, such as 'org/name'. {hint}"
        for text in model.entry.checkpoint_digests:
            if text not in model.entry.checkpoints:
                sentence = f"'{text}' is not in checkpoints of this model. Correct it, or remove this line."
                yield ("models", index, "checkpoint_digests", text), sentence


def _no_folder(requested: str, named: NamedCheckpoint) -> str:
    """Return the sentence about a checkpoint without a folder; in a mirror, its folder follows from the id."""
    if requested == named.text:
        return f"'{requested}' is not a folder. Correct the path, or copy the checkpoint there."
    return f"'{requested}' is not in data.mirror: there is no folder {named.folder}."


def _model_shapes(context: Context) -> Iterator[Problem]:
    """Reject models of unknown shape, except in rehearsals."""
    for index, model in enumerate(context.models):
        is_evaluated = bool(model.schemes) and not context.manifest.is_synthetic
        if model.entry.path is None and model.shape is None and is_evaluated:
            yield from ((("models", index, "id"), sentence) for sentence in _unknown_model(model, context))


def _unknown_model(model: NamedModel, context: Context) -> Iterator[str]:
    """Yield why the shape of a model that is named by id is unknown. It is known later if it comes from the hub."""
    known = did_you_mean(model.id, model_ids())
    if not model.entry.is_on_hub:
        yield f"no package contains the model '{model.id}'; remove source, or give the folder of its checkpoint.{known}"
    elif context.manifest.data.mirror and model.folder and (model.folder / ADAPTER_FILE).is_file():
        yield f"the mirror's '{model.id}' {IS_ADAPTER}"
    elif context.manifest.data.mirror:
        yield f"the mirror has no '{model.id}': {model.folder} is not a checkpoint ({model.shape_error}).{known}"
    elif (pin := _pin(model, context)) and not pin.is_setup_problem:
        yield (pin.problem or f"'{model.id}' cannot be planned: {model.shape_error}.") + known


def unavailable_models(context: Context) -> tuple[str, ...]:
    """Return why models on the hub cannot be planned here, if the manifest is not the cause: no access, no network."""
    pins = [_pin(model, context) for model in context.models if model.entry.is_on_hub and model.shape is None]
    return tuple(pin.problem for pin in pins if pin and pin.problem and pin.is_setup_problem)


def _pin(model: NamedModel, context: Context) -> Pin | None:
    return context.pins.by_repository.get(model_repository(model.entry))


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
        for number, mapping in enumerate(scheme.mappings):
            for key, patterns in (("smooth", (mapping.smooth,)), ("balance", mapping.balance)):
                for problem in filter(None, map(entry_problem, patterns)):
                    yield (*key_path, "mappings", number, key), problem


def _contradictions(scheme: Scheme) -> Iterator[tuple[str, str]]:
    if scheme.method not in (offered := method_names(scheme.tool)):
        hint = f" Its methods are {', '.join(offered)}." if scheme.is_quantized else ""
        yield "method", f"'{scheme.method}' cannot be combined with tool '{scheme.tool}'.{hint}"
    if (problem := format_problem(scheme)) is not None:
        yield problem
    if scheme.kv_cache is not None and scheme.tool == UNQUANTIZED:
        yield "kv_cache", "is not allowed with tool 'none': start from a quantized scheme, such as 'fp8-dynamic'."
    is_grouped = scheme.granularity in ("group", "block")
    if is_grouped and scheme.group_size is None:
        yield "granularity", f"'{scheme.granularity}' requires a group_size, such as 128."
    if not is_grouped and scheme.group_size is not None:
        yield "group_size", f"is not allowed with granularity '{scheme.granularity}'."
    gptq_methods = ("gptq", "smoothquant")
    for key, value, methods in (
        ("damping", scheme.damping, gptq_methods),
        ("activation_order", scheme.activation_order, gptq_methods),
        ("smoothing_strength", scheme.smoothing_strength, ("smoothquant",)),
        ("tuning_steps", scheme.tuning_steps, ("autoround",)),
        ("mappings", scheme.mappings or None, ("smoothquant", "awq")),
    ):
        if value is not None and scheme.method not in methods:
            yield key, f"is not allowed with method '{scheme.method}', only with {' and '.join(methods)}."
    yield from scheme_problems(scheme)


def _scheme_names(context: Context) -> Iterator[Problem]:
    """Find unknown scheme names, models without schemes, and different names of the same scheme."""
    defined = context.defined_schemes
    invalid = {definition.name for definition in context.manifest.schemes.define} - set(defined)
    for index, model in enumerate(context.models):
        if not model.schemes and not model.checkpoints:
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


def _unknown_scheme(name: str, known_schemes: Mapping[str, Scheme]) -> str:
    known = (*scheme_names(), *known_schemes)
    base, group_size = split_group_size(without_default_tool(name))
    if group_size is not None and base in known:
        found = find_scheme(base, known_schemes)
        has_fixed = found is not None and found.granularity in ("group", "block")
        reason = f"the group size of '{base}' is fixed" if has_fixed else f"'{base}' has no groups"
        return f"'{name}' does not exist: {reason}. Use '{base}'."
    return unknown_name("scheme", name, known)


def _quantizable(context: Context) -> Iterator[Problem]:
    """Reject schemes that cannot quantize the family of a model."""
    for model in context.models:
        for use in model.schemes:
            config = model.shape.config if model.shape else model_config(model.folder)
            if not (config and use.scheme and use.scheme.is_quantized) or use.scheme.tool == SYNTHETIC:
                continue
            problem = quantization_problem(config, use.scheme)
            if not problem and use.name not in context.defined_schemes:  # a definition is checked by itself
                problem = next((text.removesuffix(".") for _, text in scheme_problems(use.scheme)), None)
            if not problem and model.shape:
                problem = width_problem(use.scheme, model.shape)
            if problem:
                name = model.id.rstrip("/").rsplit("/", 1)[-1]
                yield use.key_path, f"'{use.name}' cannot quantize {name}: {problem}."


def _ignored_layers(context: Context) -> Iterator[Problem]:
    """Reject lists of ignored layers that match nothing or everything in a model, or omit its head."""
    definitions = {definition.name: index for index, definition in enumerate(context.manifest.schemes.define)}
    for model in context.models:
        for use in model.schemes:
            if not (model.shape and use.scheme and use.scheme.tool == LLMCOMPRESSOR):  # a plugin's list is its own
                continue
            problem = ignore_problem(use.scheme, linear_names(model.shape), head=head_name(model.shape))
            if problem:
                index = definitions.get(use.name, definitions.get(split_group_size(use.name)[0]))
                key_path = use.key_path if index is None else ("schemes", "define", index, "ignore")
                yield key_path, f"for {model.id}, {problem}"


def _mappings(context: Context) -> Iterator[Problem]:
    """Reject mappings of scales that name layers which a model does not have. The names of its norms are not known."""
    definitions = {definition.name: index for index, definition in enumerate(context.manifest.schemes.define)}
    for model in context.models:
        for use in model.schemes:
            index = definitions.get(use.name, definitions.get(split_group_size(use.name)[0]))
            if model.shape is None or use.scheme is None or index is None:
                continue
            names = list(linear_names(model.shape))
            for number, mapping in enumerate(use.scheme.mappings):
                for pattern in mapping.balance:
                    if not any(matches(name, (pattern,)) for name in names):
                        key_path: KeyPath = ("schemes", "define", index, "mappings", number, "balance")
                        yield key_path, f"'{pattern}' matches no linear layer of {model.id}, such as '{names[0]}'."


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


def _tasks(context: Context) -> Iterator[Problem]:
    names = [task.name for task in context.tasks]
    if not names:
        yield ("tasks",), "has no tasks; add suites or use, such as use = ['arc_challenge']."
    yield from check_definitions(context)
    yield from check_names(context)
    for position, task in enumerate(context.tasks):
        if task.name in names[:position]:
            yield task.key_path, f"'{task.name}' is listed twice, here and in a suite or a tag."
    for name in context.manifest.tasks.options:
        if name not in names:
            yield (
                ("tasks", "options", name),
                (
                    f"'{name}' is not a task of this run; its tasks are {', '.join(dict.fromkeys(names))}."
                    f"{did_you_mean(name, names)}"
                ),
            )


def _data(context: Context) -> Iterator[Problem]:
    data = context.manifest.tasks.data
    if data not in DATA_SOURCES:
        folder = resolve_path(data, context.manifest)
        unreadable = unreadable_part(folder)
        if unreadable:
            yield ("tasks", "data"), f"'{data}' cannot be read: no permission for {unreadable}."
            return
        if not is_folder(folder):
            suggestion = did_you_mean(data, DATA_SOURCES)
            yield ("tasks", "data"), f"'{data}' is neither 'hub' nor 'packages' nor a folder.{suggestion}"
            return
    for task in context.tasks:
        yield from ((task.key_path, sentence) for sentence in _items_problems(task, context.manifest))


def _items_problems(task: NamedTask, manifest: Manifest) -> Iterator[str]:
    data, name = manifest.tasks.data, task.name
    if data == "packages" and task.folder is None:
        known = ", ".join(packages.packaged_tasks())
        yield f"no package contains items of '{name}'; available are {known}. Use data = 'hub' or a folder."
    elif data not in DATA_SOURCES:
        root = resolve_path(data, manifest)
        if task.info and task.info.is_group and task.members == (name,):
            yield f"the members of '{name}', whose items it reads from folders, are not known here, {NO_ENVIRONMENT}"
            return
        members = task.members if task.info and task.info.is_group else (name,)
        if missing := [member for member in members if not any((root / member).glob("*.jsonl"))]:
            of_group = f" ({len(missing)} of the {len(members)} members of '{name}')" if len(members) > 1 else ""
            yield f"'{data}' has no items of '{missing[0]}'{of_group}: {root / missing[0]}/<split>.jsonl is missing."


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
    for name, settings in in_profile.items():
        for module in settings.modules:
            known = tuple(f"{PREFIX}{one}" for one in built_in)
            if module.startswith(PREFIX) and "/".join(module.split("/")[:2]) not in known:
                yield ("cluster", "profile", "environments", name), unknown_name("module of hpcq", module, known)
        if name not in (*built_in, *of_tools, *used.values()):
            sentence = unknown_name("environment", name, built_in)
            hint = "Your own environment must be used by evaluate.environment or quantize.environment."
            yield ("cluster", "profile", "environments", name), f"{sentence} {hint}"


_CHECKS: tuple[tuple[tuple[str, ...], _Check], ...] = (
    (("paths",), _paths),
    (("cluster",), _profile),
    (("models",), _models),
    (("models", "schemes"), _quantized_bases),
    (("models", "evaluate"), _causal_models),
    (("models", "evaluate"), _checkpoints),
    (("models", "evaluate"), check_files),
    (("models", "cluster", "evaluate"), check_code),
    (("models", "tasks", "evaluate"), check_generation),
    (("models", "evaluate"), _model_shapes),
    (("schemes",), _definitions),
    (("models", "schemes"), _scheme_names),
    (("models", "schemes"), _quantizable),
    (("models", "schemes"), _ignored_layers),
    (("models", "schemes"), _group_sizes),
    (("models", "schemes"), _mappings),
    (("models", "schemes", "evaluate"), _rehearsals),
    (("calibration",), calibration_checks.check_location),
    (("models", "schemes", "calibration", "evaluate"), calibration_checks.check_text),
    (("tasks",), _tasks),
    (("tasks",), _data),
    (("tasks",), check_selections),
    (("tasks", "evaluate"), check_items),
    (("cluster", "evaluate", "quantize"), _environments),
    (("models", "tasks", "evaluate", "generation"), contradictions.check_lengths),
    (("prompt", "tasks"), prompt_checks.check_prompts),
    (("models", "prompt", "tasks", "evaluate"), prompt_checks.check_templates),
    (("generation", "tasks"), prompt_checks.check_generation_arguments),
    (("models", "schemes", "calibration"), contradictions.check_calibration),
    (("cluster", "evaluate", "quantize"), contradictions.check_devices),
    (("data", "models"), contradictions.check_model_origin),
    (("data", "tasks"), contradictions.check_data_origin),
    (("data", "calibration", "fidelity"), contradictions.check_calibration_origin),
    (("fidelity",), fidelity_checks.check_location),
    (("fidelity", "evaluate"), fidelity_checks.check_backend),
    (("fidelity", "models", "evaluate"), fidelity_checks.check_window),
    (("fidelity", "models", "schemes", "calibration", "evaluate"), fidelity_checks.check_text),
)
