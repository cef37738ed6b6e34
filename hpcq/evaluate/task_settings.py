"""Settings of prompts and generated texts, applied to lm-eval's Task objects as its command line does (0.4.13)."""

from __future__ import annotations

from typing import Any

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.prompt_settings import Prompt
from hpcq.core.work_records import Task
from hpcq.evaluate.chat_templates import ChatTemplate
from hpcq.evaluate.requests import GENERATE
from hpcq.evaluate.sampling import is_sampled


def prompt_arguments(prompt: Prompt, chat: ChatTemplate | None) -> dict[str, Any]:
    """Return the arguments of lm-eval's `build_all_requests` for these settings.

    Raises:
        UserInputError: The checkpoint has no chat template of the requested name.
        WorkerError: The prompts are chats, but there is no template.
    """
    if not prompt.applies_template:
        return {"system_instruction": prompt.system}
    if chat is None:
        raise WorkerError("Prompts are chats (prompt.chat_template), but no chat template was loaded.")
    return {
        "system_instruction": prompt.system,
        "apply_chat_template": True,
        "fewshot_as_multiturn": prompt.fewshot_as_multiturn,
        "chat_template": chat.renderer(prompt),
        "tokenizer_name": chat.tokenizer_name,
    }


def apply_sampling(name: str, leaf: Any, task: Task) -> None:
    """Apply the generation arguments and the number of repeats to a task that generates text.

    Other tasks ignore the arguments, as in lm-eval.

    Raises:
        UserInputError: Several texts per prompt are requested, but the task generates none, or they would be equal.
    """
    repeats = task.sampling.repeats
    if leaf.OUTPUT_TYPE != GENERATE:
        if repeats is not None and repeats > 1:
            raise UserInputError(
                f"tasks.options.{task.name}.repeats: {name} generates no text, so nothing can be repeated. Remove it."
            )
        return
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in task.sampling.arguments}
    if task.max_gen_toks is not None:
        arguments["max_gen_toks"] = task.max_gen_toks
    if arguments:
        leaf.set_config(key="generation_kwargs", value=arguments, update=True)
    if repeats is None:
        return
    settings = leaf.get_config("generation_kwargs") or {}
    if repeats > 1 and not is_sampled(settings):
        raise UserInputError(
            f"tasks.options.{task.name}.repeats: {repeats} greedy texts of one prompt would be equal:"
            f" {name} is not sampled. Set gen_kwargs.do_sample = true and a temperature, or remove repeats."
        )
    leaf.set_config(key="repeats", value=repeats)
