"""Checks of the calibration text of a manifest: it exists, can be read, and is long enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.calibration_sets import calibration_set_names
from hpcq.core.calibration_source import DEFAULT_CONFIG, RANDOM_TOKENS, CalibrationSource
from hpcq.core.errors import UserInputError
from hpcq.core.text_marker import read_text_marker
from hpcq.manifest.context import Context, NamedModel, dataset_commit
from hpcq.manifest.error_messages import Problem, unknown_name
from hpcq.manifest.fs_access import is_file, unreadable_part
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.pins import calibration_repository, text_repository
from hpcq.manifest.schema import TextSection
from hpcq.quantize.calibration import shorter_calibration
from hpcq.quantize.calibration_text import TEXT_SUFFIXES, TextSummary, summarize_text

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def check_location(context: Context) -> Iterator[Problem]:
    """Find a calibration text that is neither a readable file nor in a package nor on the hub."""
    yield from location_problems("calibration", context.manifest.calibration, context.calibration_path, context)


def location_problems(key: str, section: TextSection, path: Path | None, context: Context) -> Iterator[Problem]:
    """Find a text that is neither a readable file nor in a package nor on the hub.

    Args:
        key: Key of the table.
        section: The table.
        path: Path of the text; None: unknown, or on the hub.
        context: The manifest.
    """
    key_path, dataset = (key, "dataset"), section.dataset
    is_calibration = key == "calibration"
    if text_repository(section, context.manifest) or (is_calibration and dataset == RANDOM_TOKENS):
        return
    unreadable = unreadable_part(path or resolve_path(dataset, context.manifest))
    if unreadable:
        yield key_path, f"'{dataset}' cannot be read: no permission for {unreadable}."
    elif path is None and ("/" in dataset or dataset.endswith(TEXT_SUFFIXES)):
        yield key_path, f"'{dataset}' does not exist. Correct the path."
    elif path is None:
        known = (*packages.packaged_calibrations(), *(calibration_set_names() if is_calibration else ()))
        sentence = unknown_name("calibration text" if is_calibration else "text", dataset, known)
        yield key_path, f"{sentence} It may also be the path of a .jsonl or .txt file."
    elif path.suffix not in TEXT_SUFFIXES:
        yield key_path, f"'{dataset}' is neither a .jsonl nor a .txt file. Convert it, or rename it."


def check_text(context: Context) -> Iterator[Problem]:
    """Find a text that is on this file system and cannot be used: not readable, too short, chats without a template."""
    models = [model for model in context.models if needs_calibration(model)]
    if context.manifest.is_synthetic or not models:
        return
    yield from _token_problems(models, context)
    if context.manifest.calibration.dataset == RANDOM_TOKENS:
        return
    if calibration_repository(context.manifest):
        yield from staged_text_problems(context)
        return
    section = context.manifest.calibration
    try:
        summary = _summary(context)
    except UserInputError as error:
        yield ("calibration", "dataset"), str(error)
        return
    if summary is None:
        return
    if summary.is_chat and section.chat_template is not False:
        without = [model.id for model in models if not _may_have_chat_template(model.folder)]
        if without:
            sentence = (
                f"'{section.dataset}' has chat messages, but {', '.join(without)} has no chat template. Set a column "
                "of strings, or add chat_template.jinja to the model's folder."
            )
            yield ("calibration", "column"), sentence
    elif summary.is_whole:
        yield from _length_problems(context, summary.max_tokens)


def _token_problems(models: list[NamedModel], context: Context) -> Iterator[Problem]:
    """Find settings that need a token or a template which the tokenizers of models do not have."""
    section = context.manifest.calibration
    key = "calibration"
    if section.dataset == RANDOM_TOKENS and section.chat_template is not None:
        yield (key, "chat_template"), f"is not allowed with '{RANDOM_TOKENS}', which has no text. Remove it."
    without = [model.id for model in models if section.chat_template and not _may_have_chat_template(model.folder)]
    if without:
        yield (key, "chat_template"), f"{', '.join(without)} has no chat template. Remove the key, or set it to false."
    if section.add_bos and section.sequence_length == 1:
        yield (key, "add_bos"), "leaves no room for text in sequences of 1 token. Increase sequence_length."
    without = [model.id for model in models if section.add_bos and _lacks_bos(model.folder)]
    if without:
        yield (key, "add_bos"), f"{', '.join(without)} has no BOS token. Remove the key."


def _lacks_bos(folder: Path | None) -> bool:
    """Return whether a tokenizer's configuration says that it has no BOS token; False: it has one, or it is unknown."""
    try:
        content = json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "bos_token" in content and content["bos_token"] is None


def staged_text_problems(context: Context) -> Iterator[Problem]:
    """Find a staged text from the hub or a mirror that is too short. Its size is known from its completion marker."""
    path = staged_path(context.manifest.calibration, context)
    marker = read_text_marker(path) if path else None
    if marker is not None:
        yield from _length_problems(context, marker.size)


def staged_path(section: TextSection, context: Context) -> Path | None:
    """Return the path of a text from the hub or a mirror; None: it is not from there, or its commit is unknown."""
    repository = text_repository(section, context.manifest)
    commit = dataset_commit(repository, context) if repository else None
    if repository is None or commit is None:
        return None
    source = CalibrationSource(
        repo_id=repository.id,
        commit=commit,
        config=section.config or DEFAULT_CONFIG,
        split=section.split,
        column=section.column,
    )
    return source.path(context.cache) if source.is_pinned else None


def repetition_notes(context: Context) -> Iterator[str]:
    """Yield a note if a text is long enough only because passages are repeated."""
    section = context.manifest.calibration
    summary = _summary(context) if any(map(needs_calibration, context.models)) else None
    needed = section.samples * section.sequence_length
    if summary and summary.is_whole and summary.max_distinct_tokens < needed <= summary.max_tokens:
        yield (
            f"The calibration text '{section.dataset}' is long enough only because passages are repeated: without them "
            f"it has at most {summary.max_distinct_tokens} of {needed} tokens."
        )


def _summary(context: Context) -> TextSummary | None:
    """Return the summary of a text in a file; None: it is not on this file system, or no file is read.

    Raises:
        UserInputError: A line is invalid, or the file has no text.
    """
    path = context.calibration_path
    if context.manifest.is_synthetic or path is None or path.suffix not in TEXT_SUFFIXES:
        return None
    if not is_file(path) or unreadable_part(path):
        return None
    return summarize_text(path, context.manifest.calibration.column)


def _length_problems(context: Context, max_tokens: int) -> Iterator[Problem]:
    section = context.manifest.calibration
    needed = section.samples * section.sequence_length
    if max_tokens < needed:
        sentence = (
            f"{section.samples} samples of {section.sequence_length} tokens need {needed} tokens, but "
            f"'{section.dataset}' has at most {max_tokens}: {shorter_calibration(max_tokens, section.sequence_length)}."
        )
        yield ("calibration", "samples"), sentence


def needs_calibration(model: NamedModel) -> bool:
    """Return whether a scheme of the model is calibrated."""
    return any(use.scheme and use.scheme.needs_calibration for use in model.schemes)


def _may_have_chat_template(folder: Path | None) -> bool:
    """Return whether a model has a chat template, or is not on this file system yet."""
    if folder is None or not is_file(folder / _TOKENIZER_CONFIG):
        return True
    if any(is_file(folder / name) for name in _TEMPLATE_FILES):
        return True
    try:
        return "chat_template" in json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
