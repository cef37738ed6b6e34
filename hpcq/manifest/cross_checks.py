"""Checks for valid values that contradict each other: lengths that no model supports, devices that no node has."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tasks import find_task
from hpcq.core.errors import ManifestError
from hpcq.core.work import UnitKind
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.lookups import (
    cluster_profile,
    defined_schemes,
    model_id,
    model_scheme_names,
    model_shape,
    task_entries,
)
from hpcq.manifest.schema import Manifest, TaskOptions


def check_lengths(manifest: Manifest) -> Iterator[Problem]:
    """Find a `max_length` beyond all models' context lengths, and answers that leave no room for the prompt."""
    contexts = _context_lengths(manifest)
    max_length = manifest.evaluate.max_length
    are_all_known = all(model_id(entry) in contexts for entry in manifest.models)
    if max_length is not None and contexts and are_all_known and max_length > max(contexts.values()):
        longest = max(contexts, key=contexts.__getitem__)
        sentence = (
            f"{max_length} exceeds the context length of every model; the longest is {contexts[longest]} of {longest}."
        )
        yield ("evaluate", "max_length"), f"{sentence} Remove the key."
        max_length = None
    for key_path, task, _ in task_entries(manifest):
        facts, options = find_task(task), manifest.tasks.options.get(task, TaskOptions())
        answer = options.max_gen_toks or (facts.max_gen_toks if facts else 0)
        for model, context in contexts.items():
            limit = min(context, max_length or context)
            if answer >= limit:
                key = ("tasks", "options", task, "max_gen_toks") if options.max_gen_toks else key_path
                sentence = (
                    f"'{task}' generates up to {answer} tokens, but {model} is limited to {limit} with the prompt. "
                )
                yield key, f"{sentence}Decrease tasks.options.{task}.max_gen_toks, or increase evaluate.max_length."
                break


def check_calibration(manifest: Manifest) -> Iterator[Problem]:
    """Find calibration sequences that exceed the context length of a model to quantize."""
    defined, length = defined_schemes(manifest), manifest.calibration.sequence_length
    contexts = _context_lengths(manifest)
    for index, entry in enumerate(manifest.models):
        schemes = (find_scheme(name, defined) for _, name in model_scheme_names(index, manifest))
        context = contexts.get(model_id(entry))
        if context and length > context and any(scheme and scheme.needs_calibration for scheme in schemes):
            sentence = f"{length} exceeds the context length of {model_id(entry)}, {context} tokens."
            yield ("calibration", "sequence_length"), f"{sentence} Use {context} or less."
            return


def check_devices(manifest: Manifest) -> Iterator[Problem]:
    """Find a device that no node class with the required role has."""
    try:
        profile = cluster_profile(manifest)
    except ManifestError:  # reported by checks._profile
        return
    for section, device, kind in (
        ("evaluate", manifest.evaluate.device, UnitKind.EVALUATE),
        ("quantize", manifest.quantize.device, UnitKind.QUANTIZE),
    ):
        has_gpus = any(each.gpus_per_node for each in profile.gpu_classes.values() if kind.value in each.roles)
        if device == "cuda" and not has_gpus:
            sentence = (
                f"'cuda' is requested, but no node class of profile '{profile.name}' with the role '{kind}' has GPUs."
            )
            yield (section, "device"), f"{sentence} Use 'auto'."


def _context_lengths(manifest: Manifest) -> dict[str, int]:
    """Return the context length of each model whose shape is known, in tokens."""
    shapes = {model_id(entry): model_shape(entry, manifest) for entry in manifest.models}
    return {name: shape.context_length for name, shape in shapes.items() if shape and shape.context_length}
