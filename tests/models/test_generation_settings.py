"""Generation settings of a checkpoint change no answer of the accelerate backend, except for its stop tokens.

Earlier versions let transformers apply the settings in generation_config.json to greedy answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from lm_eval.api.instance import Instance

from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey, digest_of_arguments
from tests.staged import staged_model

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ARGUMENTS = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
PROMPTS = ("The sun is a star that", "one two one two one two", "The river rises in")
CHANGING = {
    "do_sample": True,
    "temperature": -1.0,
    "top_p": 0.5,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [260, 28],
    "forced_eos_token_id": 2,
    "max_new_tokens": 3,
    "min_new_tokens": 12,
    "stop_strings": ["a"],
    "num_beams": 2,
    "eos_token_id": 2,
}
INVALID = {"num_return_sequences": -1, "early_stopping": "soon", "watermarking_config": 3}


def _checkpoint(folder: Path, settings: dict[str, Any] | str | None) -> Path:
    """The staged model with another generation_config.json; None: without one."""
    source = staged_model(MODEL_ID)
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    if settings is not None:
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return folder


def _answers(folder: Path) -> tuple[list[str], dict[str, Any]]:
    model = Model(id=MODEL_ID, path=str(folder))
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=model, scheme=scheme),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(folder),
        segments_path="",
        batch_size=len(PROMPTS),
        device="cpu",
    )
    backend = AccelerateBackend(work)
    backend.load()
    requests = [
        Request(
            key=RequestKey("corners", "1", number, 0, 0, digest_of_arguments(GENERATE, (prompt, ARGUMENTS))),
            kind=GENERATE,
            arguments=(prompt, dict(ARGUMENTS)),
            instance=Instance("generate_until", {}, (prompt, dict(ARGUMENTS)), number),
        )
        for number, prompt in enumerate(PROMPTS)
    ]
    found = dict(backend.stream([requests], ()))
    return [str(found[request].text) for request in requests], dict(backend.describe())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Answers without generation settings."""
    return _answers(_checkpoint(tmp_path_factory.mktemp("clean") / "model", {"eos_token_id": 2}))[0]


@pytest.mark.parametrize("settings", [{**CHANGING, **INVALID}, "{"], ids=["settings", "no JSON"])
def test_answers_are_those_of_the_task(clean: list[str], tmp_path: Path, settings: Any) -> None:
    """Answers equal those of a checkpoint without settings, bit for bit, and the record names what was ignored.

    Observed: one backend applied a repetition penalty to greedy answers, the other did not.
    """
    answers, description = _answers(_checkpoint(tmp_path / "model", settings))

    assert answers == clean
    if isinstance(settings, dict):
        assert "repetition_penalty=1.3" in description["ignored_generation_settings"]
        assert "temperature" in description["ignored_sampling_settings"]
    assert bool(description["generation_config_problem"]) == (settings == "{")


def test_transformers_would_apply_the_settings(clean: list[str], tmp_path: Path) -> None:
    """The repetition penalty alone changes what transformers generates, so the test above can fail."""
    folder = _checkpoint(tmp_path / "model", {"eos_token_id": 2, "repetition_penalty": 1.3})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokens = tokenizer(PROMPTS[1], return_tensors="pt")
    generated = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens.input_ids.shape[1] :]

    assert not tokenizer.decode(generated).startswith(clean[1])


def test_every_stop_token_of_the_checkpoint_ends_an_answer(clean: list[str], tmp_path: Path) -> None:
    """An answer ends before the first token that generation_config.json lists, as with vLLM."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(staged_model(MODEL_ID))
    stop = tokenizer(clean[2], add_special_tokens=False).input_ids[2]
    answers, description = _answers(_checkpoint(tmp_path / "model", {"eos_token_id": [2, stop]}))

    assert clean[2].startswith(answers[2])
    assert len(answers[2]) < len(clean[2])
    assert description["stop_tokens"] == f"2 {stop}"
