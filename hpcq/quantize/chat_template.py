"""Chat template of a model: renders the messages of a calibration text in the format of the model's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.quantize.calibration_text import Message


def chat_renderer(tokenizer: Any) -> Callable[[list[Message]], str] | None:
    """Return a function that renders messages with the tokenizer's chat template; None: it has no template.

    The function raises a UserInputError if the template refuses messages, for example their roles.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None

    def render(messages: list[Message]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserInputError(
                f"the chat template of the model refuses messages with the roles {roles} ({error}): correct the "
                "messages, or set calibration.column to a column of strings."
            ) from error

    return render
