"""Chat templates of checkpoints: recorded for the merge, selected by name, tokenized with one begin token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from tokenizers.processors import TemplateProcessing

from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.paths import chat_template_record
from hpcq.core.prompt_settings import Prompt
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, Scheme, Task, Variant
from hpcq.evaluate import worker
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.vllm.tokenizer import LmEvalTokenizer
from hpcq.evaluate.chat_templates import ChatTemplate, load_chat_template
from hpcq.evaluate.merge import merge
from hpcq.evaluate.sampling import depends_on_other_rows
from hpcq.store import read_results
from tests.tiny_llama import write_base

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REJECTING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
CHAT = Prompt(chat_template=True, system="Be brief.", fewshot_as_multiturn=True)
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small random model whose tokenizer adds a begin token, and whose template begins with one."""
    folder = write_base(tmp_path / "model", layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 0)])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def _work(run: Path, model: Path, prompt: Prompt = CHAT) -> EvaluateWork:
    items = run.parent / "items"
    items.mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = ({"question": f"What is {split} {number}?", "answer": f"#### {number}"} for number in range(3))
        (items / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    variant = Variant(model=Model(id="tiny", path=str(model)), scheme=BASE)
    task = Task(name="gsm8k", data_path=str(items), num_fewshot=1, limit=2, max_gen_toks=4, prompt=prompt)
    return EvaluateWork(
        variant=variant,
        tasks=(task,),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(model),
        segments_path=str(run / "segments" / f"evaluate.{variant.id}"),
        device="cpu",
    )


def _attempt(run: Path) -> Attempt:
    record = AttemptRecord(unit="unit", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    return Attempt(run / "attempts", record)


def test_the_merge_needs_the_record_of_the_template_and_not_the_model(model: Path, tmp_path: Path) -> None:
    """A run merges after its model was removed. Without the record either, the merge is refused, with both places."""
    run = tmp_path / "run"
    work = _work(run, model)
    worker.evaluate(work, _attempt(run))
    model.rename(tmp_path / "moved")
    merging = MergeWork(
        run="run", evaluations=(work,), segments_path=str(run / "segments"), results_path=str(run / "results.h5")
    )
    merge(merging, _attempt(run))
    [merged] = read_results(run / "results.h5").variants

    assert {score.task for score in merged.scores} == {"gsm8k"}
    assert set(json.loads(str(merged.provenance["chat_templates"]))) == {"true"}
    chat_template_record(run / "segments", work.variant).unlink()
    with pytest.raises(SetupError, match=rf"chat template of {model}, which is neither there nor recorded in .*json"):
        merge(merging, _attempt(run))


def test_a_model_without_a_template_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """The message names the setting, the model and the fix."""
    model = write_base(tmp_path / "model", layers=1)

    with pytest.raises(UserInputError, match=r"prompt\.chat_template: the tokenizer of .*model has no chat template"):
        load_chat_template(_work(tmp_path / "run", model))


def test_a_named_template_is_used(model: Path, tmp_path: Path) -> None:
    """The template of the name renders the prompts; an unknown name is refused with the known ones."""
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "short.jinja").write_text("{{ messages[-1].content }}!")
    chat = load_chat_template(_work(tmp_path / "run", model))
    assert chat

    assert chat.renderer(Prompt(chat_template="short"))(MESSAGES) == "u!"
    assert chat.renderer(CHAT)(MESSAGES) == "<start><system>s<user>u"
    with pytest.raises(UserInputError, match="no chat template 'long': choose default or short"):
        chat.renderer(Prompt(chat_template="long"))


def test_a_template_without_system_role_gets_the_rest_of_the_chat(caplog: pytest.LogCaptureFixture) -> None:
    """As in lm-eval the system message is dropped, and the log says so once; other errors are reported."""
    chat = ChatTemplate(templates=(("default", REJECTING),), special_tokens=(("bos_token", "<start>"),))
    render = chat.renderer(CHAT)

    assert render(MESSAGES) == render(MESSAGES) == "<start><user>u"
    assert caplog.text.count("rejects the system role") == 1
    always = replace(chat, templates=(("default", "{{ raise_exception('never') }}"),), tokenizer_name="tiny")
    with pytest.raises(WorkerError, match="tiny: its chat template rejects the prompts of the task: never"):
        always.renderer(CHAT)(MESSAGES)


def test_prompts_do_not_depend_on_the_day() -> None:
    """A template that writes the current day gets that of the manifest, or always the same.

    Otherwise a merge on another day than the evaluation would find no responses to its requests.
    """
    chat = ChatTemplate(templates=(("default", "{{ strftime_now('%d %b %Y') }}"),))

    assert chat.renderer(CHAT)(MESSAGES) == "26 Jul 2024"
    assert chat.renderer(replace(CHAT, date="2026-01-31"))(MESSAGES) == "31 Jan 2026"


def test_a_rendered_prompt_has_one_begin_token(model: Path) -> None:
    """A prompt that begins with the begin token's text gets no second one; a plain one gets the first."""
    made = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer = LmEvalTokenizer(made, max_length=64, add_bos_token=None)
    begin = made.bos_token_id

    for prompt in ("<start><user>u", "plain"):
        assert tokenizer.encode_prompt(prompt, 4)[0].count(begin) == 1
        [encoded] = tokenizer.encode_pairs([(prompt, " a")])
        assert encoded.pair[0].count(begin) == 1


def test_the_end_of_the_reasoning_may_be_a_special_token(model: Path, tmp_path: Path) -> None:
    """Special tokens are not part of a text, except that which ends the reasoning: it must be found."""
    backend = AccelerateBackend(_work(tmp_path / "run", model))
    backend.load()
    lm = backend._lm

    assert lm.tok_decode([70, 0, 71]) == lm.tok_decode([70, 71])
    lm.think_end_token = lm.tokenizer.bos_token
    assert lm.tok_decode([70, 0, 71]).count("<start>") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"until": ["x"], "max_gen_toks": 3, "do_sample": False, "temperature": 0.0}, False),
        ({"repetition_penalty": 1.0, "top_p": 0.9}, False),
        ({"repetition_penalty": 1.2}, True),
        ({"no_repeat_ngram_size": 2}, True),
        ({"temperature": 0.5}, True),
        ({"do_sample": False, "temperature": 0.5}, False),
        ({"do_sample": True, "temperature": 0.5}, True),
    ],
)
def test_texts_that_depend_on_the_batch_are_generated_alone(arguments: dict[str, object], *, expected: bool) -> None:
    """Sampled texts share a random generator; processors such as the repetition penalty also see the padding."""
    assert depends_on_other_rows(arguments) is expected
