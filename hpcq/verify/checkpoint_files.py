"""Checks of a checkpoint's files, by quantizers and backends: complete, consistent, and those of the plan."""

from __future__ import annotations

from pathlib import Path

from hpcq.catalog.checkpoint_problems import (
    NO_TOKENIZER,
    content_problem,
    file_problem,
    has_tokenizer,
    head_problem,
)
from hpcq.catalog.generation_settings import generation_problem
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import UnsupportedConfigError
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.remote_code import code_problem
from hpcq.catalog.weight_files import weight_files, weights_problem
from hpcq.core.checkpoint_files import METADATA_FILE
from hpcq.core.digests import known_digest_of_model
from hpcq.core.errors import SetupError
from hpcq.verify.tokenizer_file import tokenizer_file_problem


def check_files(folder: Path, *, trust_remote_code: bool) -> None:
    """Check that the files of a checkpoint are complete, readable and consistent with each other.

    Weights are not loaded.

    Args:
        folder: Folder of the checkpoint.
        trust_remote_code: Whether the checkpoint's own code is used.

    Raises:
        SetupError: A file is damaged, missing or unreadable, or files contradict each other.
    """
    shape = _shape(folder)
    try:
        problem = _problem(folder, shape, trust_remote_code=trust_remote_code)
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    if problem:
        raise SetupError(f"{folder}: {problem}.")


def check_stop_tokens(folder: Path) -> None:
    """Check that the stop tokens of a checkpoint can be read, before texts are generated.

    A model of the hub may have been staged after the plan.

    Raises:
        SetupError: They cannot: answers would be longer than those of the checkpoint.
    """
    shape = _shape(folder)
    problem = generation_problem(folder, shape.vocab_size if shape else None)
    if problem:
        raise SetupError(f"{folder}: {problem}.")


def _shape(folder: Path) -> ModelShape | None:
    try:
        return read_checkpoint_shape(folder)
    except UnsupportedConfigError:
        return None


def _problem(folder: Path, shape: ModelShape | None, *, trust_remote_code: bool) -> str | None:
    """Return the first problem. vLLM also reads weights of other names than transformers."""
    return (
        file_problem(folder, is_complete=True)
        or (None if weight_files(folder) else weights_problem(folder))
        or (None if has_tokenizer(folder) else NO_TOKENIZER)
        or (code_problem(folder) if trust_remote_code else None)
        or tokenizer_file_problem(folder)
        or content_problem(folder, shape)
        or head_problem(folder, shape)
    )


def check_unchanged(folder: Path, *, name: str, digest: str | None, is_made: bool = False) -> None:
    """Check that the files of a checkpoint are those that were planned or made, if their digest is known here.

    Hashing a large model takes minutes. A node that does not share the cache of the plan does not do it.

    Args:
        folder: Folder of the checkpoint.
        name: Name of the checkpoint, for the message.
        digest: The digest in the plan, or in the checkpoint's `hpcq.json`; None: it has none.
        is_made: Whether hpcq made the checkpoint.

    Raises:
        SetupError: A file has changed, or cannot be read.
    """
    ignored = (METADATA_FILE,) if is_made else ()
    try:
        found = known_digest_of_model(folder, ignored=ignored) if digest else None
    except OSError as error:
        raise SetupError(f"{folder}: it cannot be read ({error.strerror or error}).") from error
    if found and found != digest:
        since, fix = (
            ("hpcq made it", "delete the folder and submit the manifest again")
            if is_made
            else ("the run was planned", "restore them, or submit the manifest again")
        )
        raise SetupError(
            f"{folder}: the files of {name} have changed since {since} (SHA-256 {found[:12]}… instead of"
            f" {str(digest)[:12]}…): {fix}."
        )
