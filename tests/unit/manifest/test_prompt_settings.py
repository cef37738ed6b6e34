"""Prompt and generation settings: their records, wrong ones with the sentence that helps, and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.core.json_records import from_json, to_json
from hpcq.core.prompt_settings import Prompt, Sampling
from hpcq.core.work_records import Task
from hpcq.manifest import resolve
from tests.checkpoint_files import write_checkpoint
from tests.unit.manifest.conftest import LoadText

MANIFEST = """
[run]
name = "x"
[[models]]
path = "model"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
"""
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
CHAT = "prompt.chat_template=true"
OF_GSM8K = "tasks.options.gsm8k"
SAMPLED = "generation={do_sample=true, temperature=0.7}"


@pytest.fixture(autouse=True)
def _model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def test_keys_of_a_task_replace_those_of_all_tasks(load_text: LoadText) -> None:
    """Each task has the common settings, with its own in their place; tasks without texts have no arguments."""
    context = load_text(
        MANIFEST
        + """
[prompt]
chat_template = true
system = "Be brief."
thinking = { enable_thinking = true, think_end_token = "</think>", template_args = { effort = "low" } }
[generation]
do_sample = true
temperature = 0.7
until = ["\\n\\n"]
[tasks.options.gsm8k]
repeats = 4
prompt = { fewshot_as_multiturn = false, thinking = { enable_thinking = false } }
gen_kwargs = { temperature = 1, seed = 5, max_gen_toks = 9 }
"""
    )
    arc, gsm8k = resolve(context).tasks

    common = {"chat_template": True, "system": "Be brief.", "think_end_token": "</think>"}
    arguments = (("effort", "low"), ("enable_thinking", True))
    assert arc.prompt == Prompt(fewshot_as_multiturn=True, template_args=arguments, **common)  # type: ignore[arg-type]
    assert arc.sampling == Sampling()
    assert gsm8k.prompt.template_args == (("effort", "low"), ("enable_thinking", False))
    assert not gsm8k.prompt.fewshot_as_multiturn
    assert gsm8k.sampling == Sampling(
        arguments=(("do_sample", True), ("temperature", 1.0), ("until", ("\n\n",))), repeats=4, seed=5
    )
    assert gsm8k.max_gen_toks == 9
    assert from_json(Task, to_json(gsm8k)) == gsm8k


def test_a_task_without_chats_takes_no_setting_of_chats(load_text: LoadText) -> None:
    """One plain task among chats was refused, with the key of a setting that the manifest does not have."""
    text = (
        MANIFEST
        + """
[prompt]
chat_template = true
system = "Be brief."
date = "2025-01-01"
fewshot_as_multiturn = true
thinking = { enable_thinking = false, template_args = { effort = "low" } }
[tasks.options.arc_challenge.prompt]
chat_template = false
"""
    )
    arc, gsm8k = resolve(load_text(text)).tasks
    assert arc.prompt == Prompt(system="Be brief.")
    assert gsm8k.prompt.date == "2025-01-01"
    with pytest.raises(ManifestError, match=r"arc_challenge\.prompt\.date: has no effect without a chat template"):
        resolve(load_text(text + 'date = "2025-01-02"'))


def test_defaults_are_those_of_earlier_versions(load_text: LoadText) -> None:
    """Without settings, a task's record is the one of earlier versions, so addresses stay valid."""
    for task in resolve(load_text(MANIFEST)).tasks:
        assert (task.prompt, task.sampling) == (Prompt(), Sampling())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompt.chat_templat=true"], "chat_templat: unknown key; .* Did you mean 'chat_template'"),
        (["prompt.chat_template=1"], "prompt.chat_template: must be true or false, not 1"),
        (["prompt.chat_template='rag'"], "'model' has no chat template 'rag': .* to one of default"),
        (["prompt.fewshot_as_multiturn=true"], "fewshot_as_multiturn: is not possible without a chat template"),
        (["prompt.thinking.enable_thinking=false"], "thinking: has arguments of a chat template, but none is applied"),
        (
            [CHAT, "prompt.thinking.enable_thinking=true"],
            "think_end_token: is missing: with enable_thinking = true, give the text that ends",
        ),
        (
            [CHAT, "prompt.thinking.template_args.messages='x'"],
            "template_args.messages: is set by hpcq for every prompt: remove it.",
        ),
        ([CHAT, "prompt.thinking.template_args.x={}"], "template_args.x: must be true, false, a number or a text"),
        ([CHAT, "prompt.thinking.template_args.x=[1]"], "template_args.x: must be true, false, a number or a text"),
        ([CHAT, "prompt.thinking.think_end_token=''"], "think_end_token: must not be empty"),
        (["prompt.thinking.enable_thinking='yes'"], "enable_thinking: must be true or false, not 'yes'"),
        (["prompt.fewshot_as_multiturn=2"], "fewshot_as_multiturn: must be true or false, not 2"),
        (["prompt.add_bos_token='yes'"], "add_bos_token: must be true or false, not 'yes'"),
        (["tasks.use=['gsm8k', 'gsm8k']"], "tasks.use: 'gsm8k' is listed twice"),
        (["tasks.use=[]"], "tasks: has no tasks; add suites or use"),
        (["tasks.limit=0"], "tasks.limit: must be 1 or more, not 0"),
        (["tasks.limit=2.5"], "tasks.limit: must be an integer, not 2.5"),
        (["tasks.sample={n=0}"], "tasks.sample.n: must be 1 or more, not 0"),
        (["tasks.sample={n=4, seed=-1}"], "tasks.sample.seed: must be 0 or more, not -1"),
        (["tasks.sample={seed=4}"], "tasks.sample.n: is missing"),
        (["tasks.sample={n=4, stratify='no'}"], "tasks.sample.stratify: must be true or false, not 'no'"),
        (["tasks.sample={n=4}", "tasks.limit=4"], "tasks.sample: selects items, as 'limit' does: remove one"),
        ([f"{OF_GSM8K}={{limit=4, sample={{n=4}}}}"], "gsm8k.sample: selects items, as 'limit' does"),
        ([f"{OF_GSM8K}.items='none.json'"], "gsm8k.items: 'none.json' cannot be read"),
        ([f"{OF_GSM8K}.num_fewshot=-1"], "gsm8k.num_fewshot: must be 0 or more, not -1"),
        ([f"{OF_GSM8K}.num_fewshot='five'"], "gsm8k.num_fewshot: must be an integer, not 'five'"),
        ([f"{OF_GSM8K}.max_gen_toks=0"], "gsm8k.max_gen_toks: must be 1 or more, not 0"),
        ([f"{OF_GSM8K}.max_tokens=5"], "gsm8k.max_tokens: unknown key"),
        (["tasks.options.piqa.limit=4"], "tasks.options.piqa"),
        (["tasks.data='nowhere'"], "tasks.data: 'nowhere'"),
        (["tasks.include=['nowhere']"], "tasks.include: 'nowhere' is not a folder"),
        (["tasks.suites=['openllm']"], "tasks.suites: unknown suite 'openllm'"),
        (["generation.until=['']"], "until: must be a text of 1 or more characters, not ''"),
        (["generation.seed=4294967296"], "seed: must be 4294967295 or less, not 4294967296"),
        ([CHAT, "prompt.date='31.1.2026'"], "prompt.date: '31.1.2026' is not a day: write it as YYYY-MM-DD"),
        (["prompt.date='2026-01-31'"], "prompt.date: has no effect without a chat template"),
        (["prompt.system=''"], "prompt.system: must not be empty"),
        (
            [f"{OF_GSM8K}.prompt.add_bos_token=true"],
            "add_bos_token: unknown key; allowed here are chat_template, date, fewshot_as_multiturn, system, thinking",
        ),
        (["generation.temprature=1"], "temprature: unknown key; .* Did you mean 'temperature'"),
        (["generation.max_new_tokens=5"], "max_new_tokens: unknown key; allowed here are .*max_gen_toks"),
        (["generation.temperature=-1"], "temperature: must be 0 or more, not -1"),
        (["generation.temperature='hot'"], "temperature: must be a number, not 'hot'"),
        (["generation.top_p=0"], "top_p: must be above 0, not 0"),
        (["generation.top_p=1.5"], "top_p: must be 1 or less, not 1.5"),
        (["generation.top_k=-1"], "top_k: must be 0 or more, not -1"),
        (["generation.min_p=2"], "min_p: must be 1 or less, not 2"),
        (["generation.repetition_penalty=0"], "repetition_penalty: must be above 0, not 0"),
        (["generation.until='x'"], "until: must be a list, not 'x'"),
        (["generation.max_gen_toks=0"], "max_gen_toks: must be 1 or more, not 0"),
        (["generation.seed=-1"], "seed: must be 0 or more, not -1"),
        (
            ["generation.temperature=0.7"],
            r"generation.temperature: has no effect on 'gsm8k', whose texts are greedy \(do_sample is not set\)",
        ),
        (["generation={do_sample=false, temperature=0.7}"], r"are greedy \(do_sample = false\): set do_sample = true"),
        (["generation.top_k=5"], "generation.top_k: has no effect on 'gsm8k'"),
        (["generation.seed=5"], "generation.seed: has no effect on 'gsm8k'"),
        (["generation.do_sample=true"], "generation.do_sample: needs a temperature above 0"),
        ([f"{OF_GSM8K}.gen_kwargs.do_sample=true"], "options.gsm8k.gen_kwargs.do_sample: needs a temperature above 0"),
        (
            [f"{OF_GSM8K}={{max_gen_toks=5, gen_kwargs={{max_gen_toks=6}}}}"],
            "gen_kwargs.max_gen_toks: is also tasks.options.gsm8k.max_gen_toks: remove one",
        ),
        ([f"{OF_GSM8K}.repeats=4"], "gsm8k.repeats: 4 greedy texts of one prompt are equal: set gen_kwargs.do_sample"),
        ([f"{OF_GSM8K}.repeats=0"], "repeats: must be 1 or more, not 0"),
        (["tasks.options.arc_challenge.repeats=4"], "repeats: has no effect: 'arc_challenge' generates no text"),
        (["tasks.options.arc_challenge.gen_kwargs.top_k=4"], "gen_kwargs: has no effect: 'arc_challenge' generates"),
        (
            ["tasks.use=['arc_challenge']", SAMPLED],
            "generation.do_sample: has no effect: no task of this run generates",
        ),
    ],
)
def test_wrong_settings_are_refused(load_text: LoadText, overrides: list[str], message: str) -> None:
    """Each wrong setting is refused with its key, its value and the fix."""
    with pytest.raises(ManifestError, match=message):
        load_text(MANIFEST, *overrides)


def test_a_base_model_with_a_template_is_refused(load_text: LoadText) -> None:
    """A model on this file system without a chat template is refused when the template is on."""
    Path("model/tokenizer_config.json").write_text("{}")

    load_text(MANIFEST)
    with pytest.raises(ManifestError, match="'model' has no chat template, as is usual for base"):
        load_text(MANIFEST, CHAT)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ([], "it has a chat template, but prompts are plain text"),
        (
            [CHAT, "prompt.thinking={enable_thinking=true, think_end_token='</think>'}"],
            "arc_challenge: choices are scored directly after the prompt, without reasoning",
        ),
        ([CHAT, SAMPLED], "gsm8k: one sampled text per prompt, so the noise of sampling is not measured"),
    ],
)
def test_remarks(load_text: LoadText, overrides: list[str], note: str) -> None:
    """A template that is not applied, and a single sample, are noted once."""
    notes = resolve(load_text(MANIFEST, *overrides)).notes

    assert sum(note in one for one in notes) == 1
    assert not any(note in one for one in resolve(load_text(MANIFEST, CHAT)).notes)


def test_a_template_that_writes_the_day_is_noted(load_text: LoadText) -> None:
    """The plan says which day prompts have, unless the manifest does."""
    Path("model/tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ strftime_now('%Y') }}"}))

    def is_noted(*overrides: str) -> bool:
        return any("here always 2024-07-26" in note for note in resolve(load_text(MANIFEST, *overrides)).notes)

    assert is_noted(CHAT)
    assert not is_noted(CHAT, "prompt.date='2026-01-31'")
    assert not is_noted()


def test_templates_in_files_are_found(load_text: LoadText) -> None:
    """A template may stand in files of its own, under a name."""
    Path("model/tokenizer_config.json").write_text("{}")
    Path("model/additional_chat_templates").mkdir()
    Path("model/additional_chat_templates/rag.jinja").write_text(TEMPLATE)

    assert resolve(load_text(MANIFEST, "prompt.chat_template='rag'")).tasks[0].prompt.chat_template == "rag"
    with pytest.raises(ManifestError, match=r"no chat template 'default': .* to one of rag"):
        load_text(MANIFEST, CHAT)
