"""Check of the files of models and checkpoints that are on this file system, from their names, sizes and headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcq.catalog.checkpoint_formats import CONFIG_FILE
from hpcq.catalog.checkpoint_problems import absence_problem, content_problem, file_problem
from hpcq.catalog.generation_settings import generation_problem
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import InvalidConfigError, UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.remote_code import code_problem
from hpcq.catalog.tasks import generates_text
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.value_origin import KeyPath


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
    """Find stop tokens that cannot be read, if a task generates text: its answers would be longer ones."""
    if any(generates_text(task.name) for task in context.tasks):
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


def _config_problem(folder: Path) -> str | None:
    try:
        read_checkpoint_shape(folder)
    except InvalidConfigError as error:
        return f"{error}: correct it, or download it again"
    except UnsupportedConfigError:
        return None
    return None


def _problems(one: _Evaluated) -> Iterator[str]:
    """Yield the first problem of a checkpoint."""
    folder = one.folder
    try:
        problem = file_problem(folder, is_complete=one.is_complete)
        if one.is_complete and (folder / CONFIG_FILE).is_file():
            problem = problem or absence_problem(folder)
        problem = problem or (code_problem(folder) if one.has_code else None)
        problem = problem or (None if one.shape else _config_problem(folder)) or content_problem(folder, one.shape)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    if problem:
        yield problem
