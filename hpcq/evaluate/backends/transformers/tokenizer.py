"""Tokenizer of a checkpoint, of the same revision as its model, and the check that it fits the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork
from hpcq.verify.config_errors import config_errors, tokenizer_errors
from hpcq.verify.loaded_model import tokenizer_problem


def source_settings(work: EvaluateWork) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that select the revision, and allow the checkpoint's code to run."""
    settings: dict[str, Any] = {"trust_remote_code": work.variant.model.trust_remote_code}
    if not Path(work.checkpoint_path).is_dir():
        settings["revision"] = work.revision
    return settings


def load_tokenizer(work: EvaluateWork) -> Any:
    """Load the tokenizer as lm-eval's HFLM (0.4.13) does, which would take it from the branch main.

    Raises:
        SetupError: The checkpoint has no tokenizer, or a package that it needs is missing.
        UserInputError: transformers cannot load it.
    """
    with config_errors(work.checkpoint_path):  # which AutoTokenizer reads, too
        transformers.AutoConfig.from_pretrained(work.checkpoint_path, **source_settings(work))
    options = dict(work.options)
    bos = {"add_bos_token": options["add_bos_token"]} if "add_bos_token" in options else {}
    with tokenizer_errors(work.checkpoint_path):
        return transformers.AutoTokenizer.from_pretrained(work.checkpoint_path, **source_settings(work), **bos)


def check_tokenizer(work: EvaluateWork, tokenizer: Any, model: Any) -> None:
    """Check that the model has embeddings for the tokens.

    Raises:
        UserInputError: It has too few.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    problem = tokenizer_problem(tokenizer, vocabulary)
    if problem:
        raise UserInputError(f"{work.checkpoint_path}: {problem}: copy the model's tokenizer files.")
    if (tokenizer.pad_token_id or 0) >= vocabulary:
        raise UserInputError(
            f"{work.checkpoint_path}: its padding token has the id {tokenizer.pad_token_id}, but the model has"
            f" {vocabulary} tokens: choose another pad_token in tokenizer_config.json, such as the end token."
        )
