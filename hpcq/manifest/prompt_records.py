"""Records of the prompt and generation settings of a task, from `[prompt]`, `[generation]` and the task's options."""

from __future__ import annotations

from typing import Any

from hpcq.core.prompt_settings import GenerationValue, Prompt, Sampling
from hpcq.manifest.field_types import Section
from hpcq.manifest.schema import Manifest, TaskOptions
from hpcq.manifest.task_names import writes_text


def task_prompt(manifest: Manifest, task: str) -> Prompt:
    """Return the prompt settings of a task.

    A task with `chat_template = false` of its own takes no common setting that only a chat template has.
    """
    own = _options(manifest, task).prompt
    common = manifest.prompt
    if own is not None and own.chat_template is False:
        thinking = common.thinking and common.thinking.model_copy(update={"enable_thinking": None, "template_args": {}})
        common = common.model_copy(update={"date": None, "fewshot_as_multiturn": None, "thinking": thinking})
    merged = _merged(common, own)
    sections = [one for one in (common.thinking, own.thinking if own else None) if one is not None]
    reasoning = _merged(*sections)
    chat_template = merged.get("chat_template", False)
    multiturn = merged.get("fewshot_as_multiturn")
    arguments = {name: value for section in sections for name, value in section.template_args.items()}
    if "enable_thinking" in reasoning:
        arguments["enable_thinking"] = reasoning["enable_thinking"]
    return Prompt(
        chat_template=chat_template,
        system=merged.get("system"),
        fewshot_as_multiturn=chat_template is not False if multiturn is None else multiturn,
        template_args=tuple(sorted(arguments.items())),
        think_end_token=reasoning.get("think_end_token"),
        date=merged.get("date"),
    )


def generation_arguments(manifest: Manifest, task: str) -> dict[str, GenerationValue]:
    """Return the generation arguments of a task, with the seed; empty if it generates no text."""
    if not writes_text(task, manifest):
        return {}
    return _merged(manifest.generation, _options(manifest, task).gen_kwargs)


def max_gen_toks(manifest: Manifest, task: str) -> int | None:
    """Return the maximum number of generated tokens that the manifest sets for a task; None: that of its definition."""
    own = _options(manifest, task).max_gen_toks
    found = generation_arguments(manifest, task).get("max_gen_toks")
    return own or (found if isinstance(found, int) else None)


def task_sampling(manifest: Manifest, task: str) -> Sampling:
    """Return the settings of a task's generated texts. The maximum number of tokens is a field of the task itself."""
    arguments = generation_arguments(manifest, task)
    arguments.pop("max_gen_toks", None)
    seed = arguments.pop("seed", None)
    return Sampling(
        arguments=tuple(sorted(arguments.items())),
        repeats=_options(manifest, task).repeats,
        seed=seed if isinstance(seed, int) else None,
    )


def _options(manifest: Manifest, task: str) -> TaskOptions:
    return manifest.tasks.options.get(task, TaskOptions.model_construct())


def _merged(*sections: Section | None) -> dict[str, Any]:
    """Return all keys that the sections set. If several set a key, the last one counts."""
    return {name: value for section in sections if section for name, value in section if value is not None}
