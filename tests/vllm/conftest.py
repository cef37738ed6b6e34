"""Fixtures: one engine for all tests here, with the quickstart's real model, and the responses of lm-eval's backend.

vLLM allows one engine per process, so lm-eval's backend runs in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.catalog.safetensors_headers import headers_of
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.interface import Backend
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request
from hpcq.store import RequestKey, Response, digest_of_arguments
from tests.staged import staged_dataset, staged_model

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}
LIMIT, SHOTS, NEW_TOKENS, MAX_LENGTH, BLOCK = 3, 1, 16, 384, 32

GENERATION_SETTINGS = {
    "do_sample": True,
    "temperature": 0.6,
    "repetition_penalty": 1.3,
    "max_new_tokens": 3,
    "num_return_sequences": -1,
    "eos_token_id": 2,
}

PROSE = (
    "In the beginning of spring the river rises, and those who live on its banks carry what they own to the upper"
    " floors. Nobody complains. The water comes, stays for a week, and leaves behind a layer of fine black mud, without"
    " which nothing would grow here. "
)
ALIKE = " the water that came down from the hills in the night, with branches, leaves, and the roof of a barn; nobody"
QUESTION = PROSE + "Question: What makes the fields fertile?\nAnswer:"

CORNERS: list[tuple[str, tuple[Any, ...]]] = [
    # Choices of one token, of several, equal ones, one that is a prefix of another, and two with a long common prefix.
    *((LOGLIKELIHOOD, (QUESTION, choice)) for choice in (" A", " B", " the mud", " the mud", " the mud it leaves")),
    *((LOGLIKELIHOOD, (QUESTION, f"{ALIKE}{end}")) for end in (" saw it", " slept", "")),
    # A common prefix with different questions, each one letter longer than the other.
    *((LOGLIKELIHOOD, (f"{PROSE}Question: Who lives here{mark}\nAnswer:", " people")) for mark in ("", "?", "??")),
    # Empty context; trailing spaces in it; special tokens in the text.
    (LOGLIKELIHOOD, ("", "The river rises")),
    (LOGLIKELIHOOD, ("", "<|im_start|>user")),
    (LOGLIKELIHOOD, ("The river rises in   ", "spring")),
    (LOGLIKELIHOOD, ("<|im_start|>user\nThe river", " rises")),
    # Too long: truncated from the left, by more for the longer choice.
    *((LOGLIKELIHOOD, (PROSE * 9 + QUESTION, choice)) for choice in (" mud", " black mud from the river")),
    # Contexts of every length around a block boundary of the cache.
    *((LOGLIKELIHOOD, (" a" * count, rest)) for count in range(BLOCK - 2, BLOCK + 3) for rest in (" b", " b c d")),
    (LOGLIKELIHOOD_ROLLING, (PROSE * 8,)),
    (LOGLIKELIHOOD_ROLLING, ("A short text.",)),
    (GENERATE, (QUESTION, {"until": ["\n", ". "], "max_gen_toks": NEW_TOKENS, "do_sample": False})),
    (GENERATE, (PROSE * 9, {"until": [], "max_gen_toks": 8, "do_sample": False})),
]


def request(number: int, kind: str, arguments: tuple[Any, ...], task: str = "corners") -> Request:
    """A request of a task that does not exist."""
    key = RequestKey(task, "1", number, 0, 0, digest_of_arguments(kind, arguments))
    instance = Instance(request_type=kind, doc={}, arguments=arguments, idx=number)
    return Request(key=key, kind=kind, arguments=arguments, instance=instance)


def answers(backend: Backend, requests: Sequence[Request]) -> list[Response]:
    """The responses to `requests`, in order, from one call."""
    found = dict(backend.stream([requests], ()))
    assert len(found) == len(requests)
    return [found[request] for request in requests]


def make_work(folder: Path, **fields: Any) -> EvaluateWork:
    """The evaluation of a few documents of real tasks."""
    model = str(staged_model_path(MODEL_ID))
    tasks = tuple(
        Task(
            name=name, limit=LIMIT, num_fewshot=SHOTS, max_gen_toks=NEW_TOKENS, data_path=str(staged_dataset_path(name))
        )
        for name in DEFINITIONS
    )
    variant = Variant(model=Model(id=MODEL_ID, path=model), scheme=BASE)
    defaults = {
        "variant": variant,
        "tasks": tasks,
        "backend": "vllm",
        "dtype": "float32",
        "options": (("max_length", MAX_LENGTH),),
        "engine_options": (("kv_cache_gib", 0.25),),
        "checkpoint_path": model,
        "segments_path": str(folder / "segments" / f"evaluate.{variant.id}"),
        "batch_size": 64,
    }
    return EvaluateWork(**{**defaults, **fields})


@pytest.fixture(scope="session", autouse=True)
def staged() -> None:
    """The model and the documents of every task are staged."""
    staged_model(MODEL_ID)
    for name in DEFINITIONS:
        staged_dataset(name)


def write_unusual_checkpoint(folder: Path) -> Path:
    """The staged model with files that vLLM would read by default instead of those that transformers reads.

    The generation settings are invalid and would change every answer. Mistral's weights, configuration and tokenizer
    have priority in vLLM; here they are not usable.
    """
    folder.mkdir()
    for path in staged_model(MODEL_ID).iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    files = {header.name: "model.safetensors" for header in headers_of(folder / "model.safetensors")}
    documents = {
        "generation_config.json": GENERATION_SETTINGS,
        "model.safetensors.index.json": {"weight_map": files},
        "params.json": {},
        "tekken.json": {},
    }
    (folder / "consolidated.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> VllmBackend:
    """The backend under test, loaded; lm-eval's own loads the model without these generation settings."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = write_unusual_checkpoint(folder / "model")
    backend = VllmBackend(make_work(folder, checkpoint_path=str(checkpoint)))
    backend.load()
    return backend


@pytest.fixture(scope="session")
def lm_eval_output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Responses to the corner cases and scores of the tasks by lm-eval's own vLLM backend."""
    program_input = {
        "model": str(staged_model_path(MODEL_ID)),
        "settings": {
            "dtype": "float32",
            "max_model_len": MAX_LENGTH,
            "kv_cache_memory_bytes": 2**28,
            "block_size": BLOCK,
        },
        "requests": CORNERS,
        "tasks": {name: (definition, str(staged_dataset_path(name))) for name, definition in DEFINITIONS.items()},
        "limit": LIMIT,
        "shots": SHOTS,
        "new_tokens": NEW_TOKENS,
    }
    output = tmp_path_factory.mktemp("lm-eval") / "output.json"
    program = Path(__file__).with_name("lm_eval_program.py")
    command = [sys.executable, str(program), str(output)]
    done = subprocess.run(command, input=json.dumps(program_input), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text(encoding="utf-8"))
