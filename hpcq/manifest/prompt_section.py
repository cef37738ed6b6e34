"""Schema of `[prompt]` and `[generation]`, and of the same tables of single tasks. A missing key means the default."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from hpcq.core.prompt_settings import DEFAULT_DATE
from hpcq.manifest.field_types import Name, NonBlankStr, PositiveInt, Section, Seed, validation_error


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise validation_error("must be true, false, a number or a text: a table or list has no place in a prompt.")
    return value


TemplateArgument = Annotated[
    Annotated[bool, Tag("truth value")]
    | Annotated[int, Tag("integer")]
    | Annotated[float, Tag("number")]
    | Annotated[str, Tag("text")],
    Discriminator(lambda value: {bool: "truth value", int: "integer", float: "number"}.get(type(value), "text")),
    BeforeValidator(_scalar),
]


_RENDERER_ARGUMENTS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversations",
    "documents",
    "messages",
    "return_assistant_tokens_mask",
    "tools",
)
"""Arguments that transformers' renderer of chat templates (5.17) has itself."""


def _no_renderer_arguments(arguments: dict[str, TemplateArgument]) -> dict[str, TemplateArgument]:
    for name in arguments:
        if name in _RENDERER_ARGUMENTS:
            raise validation_error("is set by hpcq for every prompt: remove it.", name)
    return arguments


def _day(text: str) -> str:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise validation_error(f"'{text}' is not a day: write it as YYYY-MM-DD, such as '2026-01-31'.")
    return text


class ThinkingSection(Section):
    """Reasoning before an answer."""

    enable_thinking: bool | None = Field(
        None, description="Argument `enable_thinking` of the chat template; true needs `think_end_token`."
    )
    think_end_token: NonBlankStr | None = Field(
        None,
        description="Text that ends the reasoning, such as '</think>'. Only what follows is the answer; stop sequences "
        "apply to that part alone.",
    )
    template_args: Annotated[dict[Name, TemplateArgument], AfterValidator(_no_renderer_arguments)] = Field(
        {}, description="Further arguments of the chat template."
    )


class TaskPromptSection(Section):
    """Prompts of one task; keys replace those of `[prompt]`."""

    chat_template: (
        Annotated[
            Annotated[bool, Tag("truth value")] | Annotated[Name, Tag("text")],
            Discriminator(lambda value: "text" if isinstance(value, str) else "truth value"),
        ]
        | None
    ) = Field(
        None,
        description="Apply the checkpoint's chat template (lm-eval's --apply_chat_template); by default false. A name "
        "selects one of several templates.",
    )
    system: NonBlankStr | None = Field(
        None, description="System instruction (lm-eval's --system_instruction); by default none."
    )
    fewshot_as_multiturn: bool | None = Field(
        None,
        description="Few-shot examples as turns of the chat; by default true with a chat template, as in lm-eval.",
    )
    date: Annotated[str, AfterValidator(_day)] | None = Field(
        None,
        description="Day for templates that write the current one into prompts, 'YYYY-MM-DD'; by default "
        f"{DEFAULT_DATE}. lm-eval's prompts of such models change every day.",
    )
    thinking: ThinkingSection | None = Field(None, description="Reasoning before an answer.")


class PromptSection(TaskPromptSection):
    """How prompts are made of items; the defaults are lm-eval's."""

    add_bos_token: bool | None = Field(
        None,
        description="Add the begin token to prompts; by default as the tokenizer does. A prompt that begins with it, "
        "such as that of a chat template, gets no second one.",
    )


class GenerationSection(Section):
    """Generation arguments that replace those of the tasks (lm-eval's --gen_kwargs); the default is the task's own."""

    do_sample: bool | None = Field(None, description="Sample; false: the most probable token.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Temperature of sampling; above 0 it needs `do_sample = true`."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Sample from the most probable tokens with this total probability."
    )
    top_k: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        None, description="Sample from this number of most probable tokens; 0: from all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Sample from tokens with at least this fraction of the highest probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Divide the logits of tokens that occurred by this number; 1: none."
    )
    until: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] | None = Field(
        None, description="Stop sequences, besides the end token."
    )
    max_gen_toks: PositiveInt | None = Field(None, description="Maximum generated tokens.")
    seed: Seed | None = Field(None, description="Seed of sampled texts; by default `evaluate.seed`.")
