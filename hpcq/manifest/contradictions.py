"""Checks for valid values that contradict each other: lengths that no model supports, devices that no node has.

Also keys that would have no effect on what is read from the hub, from a mirror or from a file, although a reader of the
manifest would think that they select or verify it.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.core.work_records import UnitKind
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.pins import checkpoint_repositories, dataset_ids, text_repository
from hpcq.manifest.prompt_records import max_gen_toks
from hpcq.manifest.schema import TaskOptions, TextSection

_NO_REVISIONS = "is not allowed with data.mirror, whose folders have no revisions. Remove the revision, or the mirror."
_COMMIT_INSTEAD = (
    "is not read: what comes from the hub is identified by its commit, and what comes from a mirror by its files. Set "
    "{key} to a commit, or remove this line."
)


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
        facts, options = named.info, manifest.tasks.options.get(task, TaskOptions())
        requested = max_gen_toks(manifest, task)
        answer = requested or (facts.max_gen_toks if facts else 0)
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


def check_model_origin(context: Context) -> Iterator[Problem]:
    """Find revisions of models in a mirror, which has none, and digests of models on the hub, which have commits."""
    has_mirror = context.manifest.data.mirror is not None
    for index, model in enumerate(context.models):
        entry, on_hub = model.entry, checkpoint_repositories(model.entry)
        if has_mirror and entry.is_on_hub and entry.revision:
            yield ("models", index, "revision"), f"'{entry.revision}' {_NO_REVISIONS}"
        elif not has_mirror and entry.is_on_hub and entry.digest:
            yield ("models", index, "digest"), _COMMIT_INSTEAD.format(key="revision")
        for text in on_hub:
            if has_mirror and "@" in text:
                yield ("models", index, "checkpoints"), f"'{text}' {_NO_REVISIONS}"
        for text in on_hub.keys() & entry.checkpoint_digests.keys():
            sentence = "is not read: a checkpoint on the hub is identified by its commit. Write 'org/name@commit'."
            yield ("models", index, "checkpoint_digests", text), sentence


def check_data_origin(context: Context) -> Iterator[Problem]:
    """Find revisions of data sets that are not read at them, and digests of items from the hub."""
    manifest, is_on_hub = context.manifest, context.manifest.tasks.data == "hub"
    read = dataset_ids((task.name for task in context.tasks), manifest) if is_on_hub else ()
    for name, revision in manifest.data.revisions.items():
        if manifest.data.mirror is not None:
            yield ("data", "revisions", name), f"'{revision}' {_NO_REVISIONS}"
        elif name not in read:
            known = f"which reads {', '.join(read)}" if read else "which reads no data set on the hub"
            sentence = f"'{name}' is not a data set of this run's tasks, {known}. Correct or remove this line."
            yield ("data", "revisions", name), sentence
    for task, options in manifest.tasks.options.items():
        if is_on_hub and options.digest:
            yield ("tasks", "options", task, "digest"), _COMMIT_INSTEAD.format(key="data.revisions")


def check_calibration_origin(context: Context) -> Iterator[Problem]:
    """Find keys of a text on the hub for one that is not there, and the reverse: of calibration and fidelity panel."""
    yield from _text_origin("calibration", context.manifest.calibration, context)
    if context.manifest.fidelity:
        yield from _text_origin("fidelity", context.manifest.fidelity, context)


def _text_origin(table: str, section: TextSection, context: Context) -> Iterator[Problem]:
    default = type(section).model_construct()
    repository = text_repository(section, context.manifest)
    if repository is None:
        has_columns = section.dataset.endswith(".jsonl")
        for key in ("config", "split", "revision", *(() if has_columns else ("column",))):
            if getattr(section, key) != getattr(default, key):
                allowed = "a data set on the hub or a .jsonl file" if key == "column" else "a data set on the hub"
                yield (table, key), f"is only allowed with {allowed}, not '{section.dataset}'."
    elif section.digest:
        yield (table, "digest"), _COMMIT_INSTEAD.format(key=f"{table}.revision")
    elif section.revision and context.manifest.data.mirror is not None:
        yield (table, "revision"), f"'{section.revision}' {_NO_REVISIONS}"
