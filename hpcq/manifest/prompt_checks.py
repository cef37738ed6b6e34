"""Checks of prompt and generation settings: contradictions, settings without effect, models without a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hpcq.catalog.chat_templates import DEFAULT_TEMPLATE, read_chat_templates
from hpcq.catalog.tasks import find_task
from hpcq.core.prompt_settings import DEFAULT_DATE, Prompt
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem, did_you_mean
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.prompt_records import generation_arguments, task_prompt, task_sampling
from hpcq.manifest.schema import Manifest, TaskOptions
from hpcq.manifest.task_names import writes_text
from hpcq.manifest.value_origin import KeyPath

_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")


def check_prompts(context: Context) -> Iterator[Problem]:
    """Find settings that need a chat template without one, as lm-eval does, and reasoning without its end token."""
    manifest = context.manifest
    for task in context.tasks:
        key, prompt = _prompt_key(manifest, task.name), task_prompt(manifest, task.name)
        if prompt.fewshot_as_multiturn and not prompt.applies_template:
            sentence = "is not possible without a chat template: set chat_template = true, or remove this line."
            yield (*key, "fewshot_as_multiturn"), sentence
        if prompt.date and not prompt.applies_template:
            yield (*key, "date"), "has no effect without a chat template: set chat_template = true, or remove it."
        if prompt.template_args and not prompt.applies_template:
            yield (*key, "thinking"), "has arguments of a chat template, but none is applied: set chat_template = true."
        if dict(prompt.template_args).get("enable_thinking") is True and prompt.think_end_token is None:
            sentence = "is missing: with enable_thinking = true, give the text that ends the reasoning ('</think>')."
            yield (*key, "thinking", "think_end_token"), sentence
        elif prompt.think_end_token and _has_own(manifest, task.name) and not writes_text(task.name, manifest):
            yield (*key, "thinking", "think_end_token"), f"has no effect: '{task.name}' generates no text."


def check_templates(context: Context) -> Iterator[Problem]:
    """Find models and checkpoints on this file system that have no chat template, or none of the requested name."""
    requested = dict.fromkeys(
        prompt.chat_template
        for prompt in (task_prompt(context.manifest, task.name) for task in context.tasks)
        if prompt.applies_template
    )
    if context.manifest.is_synthetic or not requested:
        return
    for index, model in enumerate(context.models):
        key: KeyPath = ("models", index, "id" if model.entry.path is None else "path")
        named = [(key, model.id, model.folder)] if model.schemes else []
        named += [(one.key_path, one.text, one.folder) for one in model.checkpoints if one.problem is None]
        for key_path, text, folder in named:
            templates = _templates(folder)
            if templates is None:
                continue
            for wanted in requested:
                sentence = _template_problem(templates, wanted)
                if sentence:
                    yield key_path, f"'{text}' {sentence}"


def _templates(folder: Path | None) -> Mapping[str, str] | None:
    """Return the chat templates in a folder by name; None: the folder is not on this file system, or is damaged."""
    return read_chat_templates(folder) if folder is not None and is_folder(folder) else None


def _template_problem(templates: Mapping[str, str], wanted: bool | str) -> str | None:  # noqa: FBT001 (the manifest's value)
    """Return why a folder with these templates cannot be used, as the end of a sentence; None: it can."""
    names = sorted(templates)
    if not names:
        return (
            "has no chat template, as is usual for base models: set prompt.chat_template = false, or add"
            " chat_template.jinja to its folder."
        )
    name = wanted if isinstance(wanted, str) else DEFAULT_TEMPLATE
    if name in names:
        return None
    choices = ", ".join(names)
    return f"has no chat template '{name}': set prompt.chat_template to one of {choices}.{did_you_mean(name, names)}"


def check_generation_arguments(context: Context) -> Iterator[Problem]:
    """Find generation arguments that contradict each other, or that have no effect."""
    manifest = context.manifest
    if not any(writes_text(task.name, manifest) for task in context.tasks) and context.tasks:
        for name, value in manifest.generation:
            if value is not None:
                yield ("generation", name), "has no effect: no task of this run generates text."
    for task in context.tasks:
        options = manifest.tasks.options.get(task.name, TaskOptions.model_construct())
        if writes_text(task.name, manifest):
            yield from _contradictions(manifest, task.name, options)
            continue
        for key, value in (("gen_kwargs", options.gen_kwargs), ("repeats", options.repeats)):
            if value is not None:
                yield ("tasks", "options", task.name, key), f"has no effect: '{task.name}' generates no text."


def _contradictions(manifest: Manifest, task: str, options: TaskOptions) -> Iterator[Problem]:
    arguments, own = generation_arguments(manifest, task), ("tasks", "options", task)
    if options.max_gen_toks and options.gen_kwargs and options.gen_kwargs.max_gen_toks:
        yield (*own, "gen_kwargs", "max_gen_toks"), f"is also tasks.options.{task}.max_gen_toks: remove one of them."
    temperature, is_sampled = float(arguments.get("temperature", 0) or 0), arguments.get("do_sample")  # type: ignore[arg-type]
    if is_sampled is True and not temperature:
        yield _key(manifest, task, "do_sample"), "needs a temperature above 0, such as temperature = 0.7."
    if is_sampled is not True:
        state = "do_sample = false" if is_sampled is False else "do_sample is not set"
        for name in _OF_SAMPLING:
            if arguments.get(name) and not (name == "seed" and _may_sample(task)):
                sentence = f"has no effect on '{task}', whose texts are greedy ({state}): set do_sample = true."
                yield _key(manifest, task, name), sentence
    repeats = task_sampling(manifest, task).repeats
    if repeats and repeats > 1 and is_sampled is not True and (is_sampled is False or not _may_sample(task)):
        sentence = f"{repeats} greedy texts of one prompt are equal: set gen_kwargs.do_sample = true and a temperature."
        yield (*own, "repeats"), sentence


def _may_sample(task: str) -> bool:
    """Return whether the definition of a task may sample. Those of tasks in the catalog do not."""
    return find_task(task) is None


def _key(manifest: Manifest, task: str, name: str) -> KeyPath:
    """Return the key that sets a generation argument of a task."""
    options = manifest.tasks.options.get(task)
    is_own = options is not None and options.gen_kwargs is not None and getattr(options.gen_kwargs, name) is not None
    return ("tasks", "options", task, "gen_kwargs", name) if is_own else ("generation", name)


def _has_own(manifest: Manifest, task: str) -> bool:
    options = manifest.tasks.options.get(task)
    return options is not None and options.prompt is not None


def _prompt_key(manifest: Manifest, task: str) -> KeyPath:
    return ("tasks", "options", task, "prompt") if _has_own(manifest, task) else ("prompt",)


def _writes_date(templates: Mapping[str, str], prompts: Iterable[Prompt]) -> bool:
    """Return whether a template writes the current day into prompts and the manifest does not set the day."""
    names = (
        one.chat_template if isinstance(one.chat_template, str) else DEFAULT_TEMPLATE
        for one in prompts
        if one.applies_template and one.date is None and "date_string" not in dict(one.template_args)
    )
    return any("strftime_now" in templates.get(name, "") for name in names)


def prompt_notes(context: Context) -> Iterator[str]:
    """Yield remarks about chat templates, and about settings that have less effect than they seem to have."""
    if context.manifest.is_synthetic:
        return
    yield from _template_notes(context)
    yield from _task_notes(context)


def _template_notes(context: Context) -> Iterator[str]:
    """Yield the models and checkpoints whose template is not applied, writes the current day, or is another one."""
    prompts = [task_prompt(context.manifest, task.name) for task in context.tasks]
    has_chats = any(prompt.applies_template for prompt in prompts)
    for model in context.models:
        base = _templates(model.folder)
        if base and model.schemes and not has_chats:
            yield (
                f"{model.id}: it has a chat template, but prompts are plain text (prompt.chat_template = false), as in"
                " lm-eval by default."
            )
        if base and _writes_date(base, prompts):
            yield (
                f"{model.id}: its chat template writes the current day into prompts, here always {DEFAULT_DATE}: set"
                " prompt.date for another day."
            )
        for one in model.checkpoints:
            own = _templates(one.folder)
            if base and own and own != base and has_chats:
                yield (
                    f"{one.text}: its chat template differs from that of {model.id}: prompts are not the same text, so"
                    " its scores cannot be compared with those of other variants item by item."
                )


def _task_notes(context: Context) -> Iterator[str]:
    """Yield the tasks whose choices are scored without reasoning, and those with one sampled text per prompt."""
    manifest, names = context.manifest, [task.name for task in context.tasks]
    scored = [
        task.name
        for task in context.tasks
        if not writes_text(task.name, manifest)
        and dict(task_prompt(manifest, task.name).template_args).get("enable_thinking") is True
    ]
    if scored:
        yield (
            f"{', '.join(scored)}: choices are scored directly after the prompt, without reasoning, although"
            " enable_thinking is true."
        )
    samplings = {name: task_sampling(manifest, name) for name in names}
    single = [name for name, sampling in samplings.items() if sampling.is_sampled and (sampling.repeats or 1) == 1]
    if single:
        yield (
            f"{', '.join(single)}: one sampled text per prompt, so the noise of sampling is not measured: set"
            " tasks.options.TASK.repeats."
        )
