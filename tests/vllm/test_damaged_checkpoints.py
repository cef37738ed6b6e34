"""vLLM with damaged checkpoints: each is refused with the name of a weight; vLLM alone would give random scores."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcq.core.errors import HpcqError
from hpcq.core.work_records import EvaluateWork, Model, Variant
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.requests import LOGLIKELIHOOD
from tests.tiny_llama import write_base
from tests.vllm.conftest import BASE, request

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bfloat16."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny")


def outcome(folder: Path) -> str:
    """The log-likelihood of a text, or the backend's error, in its own process: vLLM has one engine per process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, _outcome(folder).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as output:
        text = output.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


def _outcome(folder: Path) -> str:
    work = EvaluateWork(
        variant=Variant(model=Model(id="org/tiny", path=str(folder)), scheme=BASE),
        tasks=(),
        backend="vllm",
        dtype="float32",
        options=(("max_length", 128), ("prefix_sharing", False)),
        engine_options=(("kv_cache_gib", 0.1),),
        checkpoint_path=str(folder),
        segments_path="",
    )
    backend = VllmBackend(work)
    try:
        backend.load()
    except HpcqError as error:
        return f"{type(error).__name__}: {error}"
    requests = [request(0, LOGLIKELIHOOD, ("the river rises in", " spring"))]
    [response] = dict(backend.stream([requests])).values()
    return json.dumps(response.loglikelihood)


def _without_keys(found: Tensors) -> None:
    for number in range(2):
        found.pop(f"model.layers.{number}.self_attn.k_proj.weight")


DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no keys in any layer": (_without_keys, "2 weights of the model are missing in its files, such as"),
    "no last norm": (
        lambda found: found.pop("model.norm.weight"),
        "the weight model.norm.weight of the model is missing in its files",
    ),
    "a bias that the model has not": (
        lambda found: found.update({f"{LAYER}self_attn.q_proj.bias": torch.ones(128)}),
        "the weight model.layers.1.self_attn.q_proj.bias in its files does not belong to the model",
    ),
    "NaN": (
        lambda found: found[f"{LAYER}mlp.down_proj.weight"][0].fill_(float("nan")),
        "the weight model.layers.1.mlp.down_proj.weight has values that are not finite (NaN or infinity)",
    ),
    "a last norm of zeros": (
        lambda found: found["model.norm.weight"].zero_(),
        "different tokens after a text have the same log-likelihood (-",
    ),
    "another shape": (
        lambda found: found.update({f"{LAYER}mlp.down_proj.weight": torch.ones(128, 255)}),
        "vLLM cannot load tensor model.layers.1.mlp.down_proj.weight",
    ),
}


def test_a_sound_checkpoint_is_scored(base: Path) -> None:
    """Its tied head is not missing."""
    assert float(outcome(base)) < 0


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights_are_refused(base: Path, tmp_path: Path, name: str) -> None:
    """vLLM's own check skips all linear layers, and a fused projection counts as loaded once one part of it is.

    Observed: a model without one projection, and one with a NaN weight, were scored.
    """
    damage, message = DAMAGES[name]
    folder = Path(shutil.copytree(base, tmp_path / "damaged"))
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = outcome(folder)
    assert found.startswith(("WorkerError: ", "UserInputError: "))
    assert message in found
