"""Special tokens that a tokenizer appends to every text, such as the end token of LLaMA's with `add_eos_token = true`.

lm-eval (0.4.13) keeps them. A model then reads an end token between a prompt and its answer, and the first token of the
answer is not scored: the end token of the prompt takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.processors import TemplateProcessing

from hpcq.core.errors import UserInputError

_TEXT = "A text"


def appended_tokens(tokenizer: Any) -> str:
    """Return the tokens that `tokenizer` appends to a text, joined by spaces; '': none."""
    return " ".join(tokenizer.convert_ids_to_tokens(_around_text(tokenizer)[1]))


def remove_appended_tokens(tokenizer: Any, checkpoint_path: str) -> None:
    """Let `tokenizer` append nothing. What it puts before a text stays.

    Raises:
        UserInputError: It appends tokens in a way that cannot be changed.
    """
    before, after = _around_text(tokenizer)
    if not after:
        return
    if tokenizer.is_fast:
        names = tokenizer.convert_ids_to_tokens(before)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], special_tokens=list(dict(zip(names, before, strict=True)).items())
        )
    else:
        tokenizer.add_eos_token = False
    if appended := appended_tokens(tokenizer):
        raise UserInputError(
            f"{checkpoint_path}: evaluate.add_eos = false is not possible: its tokenizer appends {appended} to every"
            " text by its own code. Remove the key."
        )


def _around_text(tokenizer: Any) -> tuple[Sequence[int], Sequence[int]]:
    """Return the special tokens before and after a text; nothing if the text itself is changed by them."""
    alone: list[int] = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(_TEXT)["input_ids"]
    for begin in range(len(whole) - len(alone) + 1):
        end = begin + len(alone)
        if whole[begin:end] == alone:
            return whole[:begin], whole[end:]
    return (), ()
