"""What is right by itself in a manifest and cannot be had together: lengths no model takes, devices no node has.

Knows the manifest's tables and the profile; reads nothing but what their look-ups read.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tasks import find_task
from hpcq.core.errors import ManifestError
from hpcq.core.work import Kind
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.lookups import defined_schemes, name_of, profile_of, scheme_names_of, shape_of, tasks_of
from hpcq.manifest.schema import Manifest, TaskOptions


def lengths(manifest: Manifest) -> Iterator[Problem]:
    """A length beyond every model's, or one that an answer alone fills."""
    contexts = _contexts(manifest)
    wanted = manifest.evaluate.max_length
    are_all_known = all(name_of(entry) in contexts for entry in manifest.models)
    if wanted is not None and contexts and are_all_known and wanted > max(contexts.values()):
        most = max(contexts, key=contexts.__getitem__)
        sentence = f"{wanted} is more than any of the models takes: {most} has {contexts[most]}. Leave it out."
        yield ("evaluate", "max_length"), sentence
        wanted = None
    for place, task, _ in tasks_of(manifest):
        facts, options = find_task(task), manifest.tasks.options.get(task, TaskOptions())
        answer = options.max_gen_toks or (facts.max_gen_toks if facts else 0)
        for model, context in contexts.items():
            room = min(context, wanted or context)
            if answer >= room:
                key = ("tasks", "options", task, "max_gen_toks") if options.max_gen_toks else place
                sentence = f"an answer of '{task}' may have {answer} tokens, and {model} takes {room} with the prompt:"
                yield key, f"{sentence} set tasks.options.{task}.max_gen_toks to less, or evaluate.max_length to more."
                break


def calibration(manifest: Manifest) -> Iterator[Problem]:
    """Sequences that are longer than what a model to be calibrated takes."""
    defined, length = defined_schemes(manifest), manifest.calibration.sequence_length
    contexts = _contexts(manifest)
    for index, entry in enumerate(manifest.models):
        schemes = (find_scheme(name, defined) for _, name in scheme_names_of(index, manifest))
        context = contexts.get(name_of(entry))
        if context and length > context and any(scheme and scheme.needs_calibration for scheme in schemes):
            sentence = f"{length} is more than {name_of(entry)} takes, {context} tokens. Use {context} or less."
            yield ("calibration", "sequence_length"), sentence
            return


def devices(manifest: Manifest) -> Iterator[Problem]:
    """A device that no class with the role has."""
    try:
        profile = profile_of(manifest)
    except ManifestError:  # told by the check of the profile
        return
    for section, device, kind in (
        ("evaluate", manifest.evaluate.device, Kind.EVALUATE),
        ("quantize", manifest.quantize.device, Kind.QUANTIZE),
    ):
        has_gpus = any(offer.gpus_per_node for offer in profile.gpu_classes.values() if kind.value in offer.roles)
        if device == "cuda" and not has_gpus:
            sentence = f"'cuda' is asked for, and no class of profile '{profile.name}' with the role '{kind}' has GPUs."
            yield (section, "device"), f"{sentence} Use 'auto'."


def _contexts(manifest: Manifest) -> dict[str, int]:
    """Tokens that each model takes, of those whose shape is known."""
    shapes = {name_of(entry): shape_of(entry, manifest) for entry in manifest.models}
    return {name: shape.context for name, shape in shapes.items() if shape and shape.context}
