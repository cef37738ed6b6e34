"""Check of the files of models and checkpoints that are on this file system, from their names, sizes and headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.architectures import architectures_of, generates_with
from hpcq.catalog.checkpoint_formats import CONFIG_FILE
from hpcq.catalog.checkpoint_problems import absence_problem, content_problem, file_problem
from hpcq.catalog.config_values import value_problem
from hpcq.catalog.generation_settings import generation_problem
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import InvalidConfigError, UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.remote_code import auto_map_problem, code_problem, has_own_code, has_own_tokenizer, model_types
from hpcq.catalog.tasks import generates_text
from hpcq.catalog.tokenizer_file import TOKENIZER_FILE
from hpcq.catalog.tools import backends
from hpcq.core.frozen import dataclass
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem, did_you_mean
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.lookups import model_config
from hpcq.manifest.value_origin import KeyPath

_ACCELERATE = "accelerate"


@dataclass(frozen=True, kw_only=True)
class _Evaluated:
    """A model or checkpoint that is evaluated, and whose folder is known.

    Attributes:
        key_path: Key of the text.
        text: The text in the manifest.
        folder: Its folder, which may not exist.
        shape: Its sizes; None: unknown.
        is_complete: Whether all files must exist. Files of a checkpoint on the hub may not be staged yet.
        has_code: Whether its own code is used (`trust_remote_code`).
    """

    key_path: KeyPath
    text: str
    folder: Path
    shape: ModelShape | None
    is_complete: bool
    has_code: bool

    def problem(self, clause: str) -> Problem:
        """Return the problem with this clause."""
        return self.key_path, f"'{self.text}': {clause} ({self.folder})."


def check_files(context: Context) -> Iterator[Problem]:
    """Find damaged files. Files of hub models that are not staged yet are not reported as missing.

    Runs with the synthetic backend read no files, so nothing is checked.
    """
    for one in _evaluated(context):
        yield from map(one.problem, _problems(one))


def check_generation(context: Context) -> Iterator[Problem]:
    """Find stop tokens that cannot be read, if a task generates text: its answers would be too long."""
    if any(generates_text(task.name, task.definitions) for task in context.tasks):
        for one in _evaluated(context):
            clause = generation_problem(one.folder, one.shape.vocab_size if one.shape else None)
            if clause:
                yield one.problem(clause)


def _evaluated(context: Context) -> Iterator[_Evaluated]:
    """Yield the models and checkpoints whose folders exist."""
    for index, model in enumerate(() if context.manifest.is_synthetic else context.models):
        has_code = model.entry.trust_remote_code
        if model.schemes and model.folder is not None and is_folder(model.folder):
            yield _Evaluated(
                key_path=("models", index, "id" if model.entry.path is None else "path"),
                text=model.entry.path or model.id,
                folder=model.folder,
                shape=model.shape,
                is_complete=model.entry.path is not None,
                has_code=has_code,
            )
        for named in model.checkpoints:
            if named.problem is None and named.folder is not None and is_folder(named.folder):
                yield _Evaluated(
                    key_path=named.key_path,
                    text=named.text,
                    folder=named.folder,
                    shape=named.shape,
                    is_complete=not named.is_on_hub,
                    has_code=has_code,
                )


def check_code(context: Context) -> Iterator[Problem]:
    """Find models that transformers does not know, and whose own code may not be used or does not exist."""
    for one in _evaluated(context):
        config = model_config(one.folder) or {}
        model_type = config.get("model_type")
        if not isinstance(model_type, str) or model_type in model_types() or not _needs_transformers(context, config):
            continue
        unknown = f"transformers has no model_type '{model_type}'"
        if not has_own_code(config):
            hint = did_you_mean(model_type, model_types())
            yield one.key_path, f"'{one.text}': {unknown}: correct {CONFIG_FILE} ({one.folder}).{hint}"
        elif not one.has_code:
            trust = "set trust_remote_code = true for this model, if you trust it"
            yield one.problem(f"{CONFIG_FILE} needs the model's own code (auto_map), because {unknown}: {trust}")


def code_notes(context: Context) -> Iterator[str]:
    """Yield a note for each model with code of its own that a backend does not run, as with lm-eval."""
    backend = context.manifest.evaluate.backend
    for one in _evaluated(context):
        config = model_config(one.folder) or {}
        if not one.has_code and has_own_tokenizer(one.folder):
            yield (
                f"{one.text}: transformers makes its tokenizer from {TOKENIZER_FILE}, not with the model's code"
                " (auto_map in tokenizer_config.json). To use the latter, set trust_remote_code = true for this model."
            )
        if not has_own_code(config):
            continue
        if one.has_code and generates_with(backend, architectures_of(config)):
            own = "its own code for this architecture"
            yield f"{one.text}: {backend} computes it with {own}, not with the model's code."
        elif not one.has_code and config.get("model_type") in model_types():
            yield (
                f"{one.text}: transformers computes it with its own code for this model_type, not with the model's code"
                " (auto_map). To use the latter, set trust_remote_code = true for this model."
            )


def _needs_transformers(context: Context, config: Mapping[str, Any]) -> bool:
    """Return whether hpcq's version of transformers makes the model. An environment of the user may have another."""
    settings = context.manifest.evaluate
    is_own = context.profile is None or backends()[_ACCELERATE].environment in context.profile.environments
    return (
        not settings.environment and not is_own and generates_with(settings.backend, architectures_of(config)) is False
    )


def _config_problem(folder: Path, shape: ModelShape | None) -> str | None:
    """Return which value of config.json is invalid, and the fix, as a clause."""
    problem = value_problem(model_config(folder) or {})
    if problem is None and shape is None:
        try:
            read_checkpoint_shape(folder)
        except InvalidConfigError as error:
            problem = str(error)
        except UnsupportedConfigError:
            return None
    return problem and f"{problem}: correct it, or copy or download it again"


def _problems(one: _Evaluated) -> Iterator[str]:
    """Yield the first problem of a checkpoint."""
    folder = one.folder
    try:
        problem = file_problem(folder, is_complete=one.is_complete)
        if one.is_complete and (folder / CONFIG_FILE).is_file():
            problem = problem or absence_problem(folder)
        problem = problem or auto_map_problem(folder) or (code_problem(folder) if one.has_code else None)
        problem = problem or _config_problem(folder, one.shape) or content_problem(folder, one.shape)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    if problem:
        yield problem
