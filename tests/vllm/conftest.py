"""One engine of ours for all tests here, on the quickstart's real model, and what lm-eval's back end says to the same.

vLLM allows a process one engine, so lm-eval's runs in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.packages import staged_items, staged_model
from hpcq.core.work import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request
from hpcq.stage import stage_items, stage_model
from hpcq.store import RequestKey, Response, digest_of_arguments

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}
LIMIT, SHOTS, NEW_TOKENS, MAX_LENGTH, BLOCK = 3, 1, 16, 384, 32

PROSE = (
    "In the beginning of spring the river rises, and those who live on its banks carry what they own to the upper"
    " floors. Nobody complains. The water comes, stays for a week, and leaves behind a layer of fine black mud, without"
    " which nothing would grow here. "
)
ALIKE = " the water that came down from the hills in the night, with branches, leaves, and the roof of a barn; nobody"
QUESTION = PROSE + "Question: What makes the fields fertile?\nAnswer:"

CORNERS: list[tuple[str, tuple[Any, ...]]] = [
    # Choices of one token, of several, equal ones, one that begins another, and two that begin alike for long.
    *((LOGLIKELIHOOD, (QUESTION, choice)) for choice in (" A", " B", " the mud", " the mud", " the mud it leaves")),
    *((LOGLIKELIHOOD, (QUESTION, f"{ALIKE}{end}")) for end in (" saw it", " slept", "")),
    # The same beginning with other questions, one a single letter longer than the other.
    *((LOGLIKELIHOOD, (f"{PROSE}Question: Who lives here{mark}\nAnswer:", " people")) for mark in ("", "?", "??")),
    # No context; blanks at its end; special tokens in the text; nothing to continue with.
    (LOGLIKELIHOOD, ("", "The river rises")),
    (LOGLIKELIHOOD, ("", "<|im_start|>user")),
    (LOGLIKELIHOOD, ("The river rises in   ", "spring")),
    (LOGLIKELIHOOD, ("<|im_start|>user\nThe river", " rises")),
    (LOGLIKELIHOOD, ("The river rises", "")),
    # Too long: the beginning is cut, by more for the longer choice.
    *((LOGLIKELIHOOD, (PROSE * 9 + QUESTION, choice)) for choice in (" mud", " black mud from the river")),
    # Every length of a context around the end of a block of the cache.
    *((LOGLIKELIHOOD, (" a" * count, rest)) for count in range(BLOCK - 2, BLOCK + 3) for rest in (" b", " b c d")),
    (LOGLIKELIHOOD_ROLLING, (PROSE * 8,)),
    (LOGLIKELIHOOD_ROLLING, ("A short text.",)),
    (GENERATE, (QUESTION, {"until": ["\n", ". "], "max_gen_toks": NEW_TOKENS, "do_sample": False})),
    (GENERATE, (PROSE * 9, {"until": [], "max_gen_toks": 8, "do_sample": False})),
]


def request(number: int, kind: str, arguments: tuple[Any, ...], task: str = "corners") -> Request:
    """A request of a task that exists nowhere."""
    key = RequestKey(task, "1", number, 0, 0, digest_of_arguments(kind, arguments))
    return Request(key=key, kind=kind, arguments=arguments)


def answers(backend: VllmBackend, requests: Sequence[Request]) -> list[Response]:
    """One response a request, in order, all asked together."""
    found = dict(backend.stream([requests]))
    assert len(found) == len(requests)
    return [found[request] for request in requests]


def make_work(folder: Path, **fields: Any) -> EvaluateWork:
    """The evaluation of a few documents of real tasks."""
    model = str(staged_model(MODEL_ID))
    tasks = tuple(
        Task(name=name, limit=LIMIT, num_fewshot=SHOTS, max_gen_toks=NEW_TOKENS, data_path=str(staged_items(name)))
        for name in DEFINITIONS
    )
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=BASE)
    defaults = {
        "variant": variant,
        "tasks": tasks,
        "backend": "vllm",
        "dtype": "float32",
        "options": (("max_length", MAX_LENGTH),),
        "engine": (("kv_cache_gib", 0.25),),
        "checkpoint_path": model,
        "segments_path": str(folder / "segments" / f"evaluate.{variant.id}"),
        "batch_size": 64,
    }
    return EvaluateWork(**{**defaults, **fields})


@pytest.fixture(scope="session", autouse=True)
def staged() -> None:
    """The model and every task's items are in the cache."""
    stage_model(MODEL_ID, progress=lambda _: None)
    for name in DEFINITIONS:
        stage_items(name, progress=lambda _: None)


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> VllmBackend:
    """Ours, loaded."""
    made = VllmBackend(make_work(tmp_path_factory.mktemp("run")))
    made.load()
    return made


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """lm-eval's answers to the corner cases, and its scores of the tasks, by its own vLLM back end."""
    asked = {
        "model": str(staged_model(MODEL_ID)),
        "settings": {
            "dtype": "float32",
            "max_model_len": MAX_LENGTH,
            "kv_cache_memory_bytes": 2**28,
            "block_size": BLOCK,
        },
        "requests": CORNERS,
        "tasks": {name: (definition, str(staged_items(name))) for name, definition in DEFINITIONS.items()},
        "limit": LIMIT,
        "shots": SHOTS,
        "new_tokens": NEW_TOKENS,
    }
    told = tmp_path_factory.mktemp("theirs") / "told.json"
    program = Path(__file__).with_name("lm_eval_answers.py")
    command = [sys.executable, str(program), str(told)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(told.read_text(encoding="utf-8"))
