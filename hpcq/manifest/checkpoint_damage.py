"""Check of the files of models and checkpoints that are on this file system, from their names, sizes and headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcq.catalog.checkpoint_formats import CONFIG_FILE
from hpcq.catalog.checkpoint_problems import absence_problem, content_problem, file_problem
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import InvalidConfigError, UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.remote_code import code_problem
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem
from hpcq.manifest.fs_access import is_folder


def check_files(context: Context) -> Iterator[Problem]:
    """Find damaged files. Files of hub models that are not staged yet are not reported as missing.

    Runs with the synthetic backend read no files, so nothing is checked.
    """
    if context.manifest.is_synthetic:
        return
    for index, model in enumerate(context.models):
        has_code = model.entry.trust_remote_code
        if model.schemes and model.folder is not None:
            key = "id" if model.entry.path is None else "path"
            is_complete = model.entry.path is not None
            for sentence in _problems(model.folder, model.shape, is_complete=is_complete, has_code=has_code):
                yield ("models", index, key), f"'{model.entry.path or model.id}': {sentence}"
        for named in model.checkpoints:
            if named.problem is None and named.folder is not None:
                is_complete = not named.is_on_hub
                for sentence in _problems(named.folder, named.shape, is_complete=is_complete, has_code=has_code):
                    yield named.key_path, f"'{named.text}': {sentence}"


def _config_problem(folder: Path) -> str | None:
    try:
        read_checkpoint_shape(folder)
    except InvalidConfigError as error:
        return f"{error}: correct it, or download it again"
    except UnsupportedConfigError:
        return None
    return None


def _problems(folder: Path, shape: ModelShape | None, *, is_complete: bool, has_code: bool) -> Iterator[str]:
    """Yield the first problem of a checkpoint.

    Args:
        folder: Folder of the checkpoint, which may not exist.
        shape: Sizes of the model; None: unknown.
        is_complete: Whether all files must exist. Files of a checkpoint on the hub may not be staged yet.
        has_code: Whether the checkpoint's own code is used (`trust_remote_code`).
    """
    if not is_folder(folder):
        return
    try:
        problem = file_problem(folder, is_complete=is_complete)
        if is_complete and (folder / CONFIG_FILE).is_file():
            problem = problem or absence_problem(folder)
        problem = problem or (code_problem(folder) if has_code else None)
        problem = problem or (None if shape else _config_problem(folder)) or content_problem(folder, shape)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    if problem:
        yield f"{problem} ({folder})."
