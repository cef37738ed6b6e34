"""Sentences about prompt and generation settings that are not lm-eval's defaults, for every format of a report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcq.store import VariantScores

CHAT_TEMPLATES = "chat_templates"
"""Attribute of a merged variant: SHA-256 of its chat template by the setting that selected it, as JSON."""

_SHOWN_TEXT, _SHOWN_DIGEST = 80, 12
_NO_SETTINGS: Mapping[str, Any] = {}


def prompt_sentences(variants: Sequence[VariantScores]) -> Iterator[str]:
    """Yield how prompts were made and texts were generated, where the manifest says so, with the tasks."""
    prompts: dict[str, dict[str, None]] = {}
    generations: dict[str, dict[str, None]] = {}
    everything: dict[str, None] = {}
    for variant in variants:
        templates = json.loads(str(variant.provenance.get(CHAT_TEMPLATES) or "{}"))
        for task in json.loads(str(variant.provenance.get("tasks") or "[]")):
            everything[task["name"]] = None
            prompt, sampling = task.get("prompt", _NO_SETTINGS), task.get("sampling", _NO_SETTINGS)
            if text := ", ".join(_prompt(prompt, templates)):
                prompts.setdefault(text, {})[task["name"]] = None
            if text := ", ".join(_generation(sampling, task.get("max_gen_toks"))):
                generations.setdefault(text, {})[task["name"]] = None
    yield from (f"Prompts of {_named(tasks, everything)}: {text}." for text, tasks in prompts.items())
    yield from (f"Texts of {_named(tasks, everything)}: {text}." for text, tasks in generations.items())


def other_template(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two variants, given by their attributes, have prompts from other chat templates."""
    return str(one.get(CHAT_TEMPLATES) or "{}") != str(other.get(CHAT_TEMPLATES) or "{}")


def flat_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a task with dotted keys: prompt.chat_template, sampling.arguments.top_p."""
    flat: dict[str, Any] = {}
    for name, value in task.items():
        if name == "sampling":
            rest = {key: one for key, one in value.items() if key != "arguments"}
            flat |= {f"sampling.{key}": one for key, one in {**rest, **dict(value.get("arguments", ()))}.items()}
        elif isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            flat[name] = value
    return flat


def _named(tasks: Iterable[str], everything: Iterable[str]) -> str:
    named = list(tasks)
    return "all tasks" if named == list(everything) else ", ".join(named)


def _prompt(prompt: Mapping[str, Any], templates: Mapping[str, str]) -> Iterator[str]:
    requested = prompt.get("chat_template", False)
    if requested is not False:
        digest = templates.get(json.dumps(requested), "")[:_SHOWN_DIGEST]
        name = f" '{requested}'" if isinstance(requested, str) else ""
        yield f"chat template{name}" + (f" (SHA-256 {digest})" if digest else "")
        yield "few-shot examples as turns" if prompt.get("fewshot_as_multiturn") else "one user turn"
    if prompt.get("system"):
        yield f"system instruction {_quoted(prompt['system'])}"
    yield from (f"{name} = {_shown(value)}" for name, value in prompt.get("template_args", ()))
    if prompt.get("date"):
        yield f"day {prompt['date']}"
    if prompt.get("think_end_token"):
        yield f"answers begin after {_quoted(prompt['think_end_token'])}"


def _generation(sampling: Mapping[str, Any], max_gen_toks: int | None) -> Iterator[str]:
    arguments = dict(sampling.get("arguments", ()))
    if max_gen_toks is not None and arguments:
        arguments["max_gen_toks"] = max_gen_toks
    yield from (f"{name} = {_shown(value)}" for name, value in arguments.items())
    if sampling.get("seed") is not None:
        yield f"seed {sampling['seed']}"
    repeats = sampling.get("repeats")
    if repeats is not None:
        yield f"{repeats} per prompt" + (", avg@n with errors over items" if repeats > 1 else "")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line if len(line) <= _SHOWN_TEXT else line[:_SHOWN_TEXT] + '…'}'"
