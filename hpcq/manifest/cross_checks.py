"""Checks for valid values that contradict each other: lengths that no model supports, devices that no node has."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.tasks import find_task
from hpcq.core.work import UnitKind
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.schema import TaskOptions


def check_lengths(context: Context) -> Iterator[Problem]:
    """Find a `max_length` beyond all models' context lengths, and answers that leave no room for the prompt."""
    manifest, contexts = context.manifest, _context_lengths(context)
    max_length = manifest.evaluate.max_length
    are_all_known = all(model.id in contexts for model in context.models)
    if max_length is not None and contexts and are_all_known and max_length > max(contexts.values()):
        longest = max(contexts, key=contexts.__getitem__)
        sentence = (
            f"{max_length} exceeds the context length of every model; the longest is {contexts[longest]} of {longest}."
        )
        yield ("evaluate", "max_length"), f"{sentence} Remove the key."
        max_length = None
    for named in context.tasks:
        task = named.name
        facts, options = find_task(task), manifest.tasks.options.get(task, TaskOptions())
        answer = options.max_gen_toks or (facts.max_gen_toks if facts else 0)
        for model, length in contexts.items():
            limit = min(length, max_length or length)
            if answer >= limit:
                key = ("tasks", "options", task, "max_gen_toks") if options.max_gen_toks else named.key_path
                sentence = (
                    f"'{task}' generates up to {answer} tokens, but {model} is limited to {limit} with the prompt. "
                )
                yield key, f"{sentence}Decrease tasks.options.{task}.max_gen_toks, or increase evaluate.max_length."
                break


def check_calibration(context: Context) -> Iterator[Problem]:
    """Find calibration sequences that exceed the context length of a model to quantize."""
    length, contexts = context.manifest.calibration.sequence_length, _context_lengths(context)
    for model in context.models:
        limit = contexts.get(model.id)
        if limit and length > limit and any(use.scheme and use.scheme.needs_calibration for use in model.schemes):
            sentence = f"{length} exceeds the context length of {model.id}, {limit} tokens."
            yield ("calibration", "sequence_length"), f"{sentence} Use {limit} or less."
            return


def check_devices(context: Context) -> Iterator[Problem]:
    """Find a device that no node class with the required role has."""
    manifest, profile = context.manifest, context.profile
    if profile is None:  # reported by checks._profile
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


def _context_lengths(context: Context) -> dict[str, int]:
    """Return the context length of each model whose shape is known, in tokens."""
    shapes = {model.id: model.shape for model in context.models}
    return {name: shape.context_length for name, shape in shapes.items() if shape and shape.context_length}
