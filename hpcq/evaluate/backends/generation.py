"""What both backends need to generate text: settings of the checkpoint, in its folder or on the hub; checks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hpcq.catalog.generation_settings import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    GenerationSettings,
    read_generation_settings,
)
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork


def checkpoint_generation_settings(work: EvaluateWork) -> GenerationSettings:
    """Return the generation settings of the checkpoint of `work`."""
    folder = Path(work.checkpoint_path)
    return read_generation_settings(folder if folder.is_dir() else _snapshot(work))


def check_room_for_prompt(max_new_tokens: int, max_length: int) -> None:
    """Check that a model can read at least one token of a prompt before it generates a text.

    Raises:
        UserInputError: It cannot.
    """
    if max_new_tokens >= max_length:
        raise UserInputError(
            f"A text of up to {max_new_tokens} tokens leaves no room for a prompt in a maximum length of {max_length}"
            " tokens: set a smaller tasks.options.TASK.max_gen_toks, or a larger evaluate.max_length."
        )


def check_end_token(tokenizer: Any, checkpoint_path: str) -> None:
    """Check that a tokenizer has an end token: lm-eval (0.4.13) ends texts with it.

    Raises:
        UserInputError: It has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserInputError(
            f"{checkpoint_path}: its tokenizer has no end token (eos_token), which lm-eval needs to generate text: "
            "copy the model's tokenizer files, or set eos_token in tokenizer_config.json."
        )


def _snapshot(work: EvaluateWork) -> Path:
    """Return the folder of the hub client's cache with the files that have generation settings."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    revision = work.revision
    config = hf_hub_download(work.checkpoint_path, CONFIG_FILE, revision=revision)
    with contextlib.suppress(EntryNotFoundError):
        hf_hub_download(work.checkpoint_path, GENERATION_CONFIG_FILE, revision=revision)
    return Path(config).parent
