"""What vLLM reports about quantized checkpoints, with an engine that only answers these questions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.backends.vllm.quantization import check_tensors, describe_quantization
from tests.checkpoint_files import AWQ, write_checkpoint

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
INT8 = Scheme(name="w8a8", tool="llmcompressor", method="rtn", weights="int8", activations="int8", dynamic=True)
WORK = EvaluateWork(
    variant=Variant(model=Model(id="org/Tiny"), scheme=INT8),
    tasks=(),
    backend="vllm",
    dtype="float32",
    checkpoint_path="/checkpoint",
    segments_path="",
)
UNQUANTIZED = replace(WORK, variant=Variant(model=Model(id="org/Tiny"), scheme=BASE))


def engine(method: str | None, *kernels: list[str]) -> SimpleNamespace:
    """An engine whose workers report these kernels."""
    config = SimpleNamespace(model_config=SimpleNamespace(quantization=method))
    return SimpleNamespace(vllm_config=config, collective_rpc=lambda _: list(kernels))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that declares its quantization."""
    return write_checkpoint(tmp_path / "checkpoint", AWQ)


def test_method_and_kernels_of_all_workers_are_recorded(tmp_path: Path) -> None:
    """The provenance has vLLM's method and every kernel of any worker, once."""
    found = describe_quantization(engine("awq", ["A K"], ["A K", "B"]), WORK)
    assert found == {"quantization": "awq", "quantization_kernels": "A K; B"}
    plain = str(write_checkpoint(tmp_path / "plain"))
    for work in (WORK, UNQUANTIZED):  # a tool may store its weights unquantized
        assert describe_quantization(engine(None, []), replace(work, checkpoint_path=plain)) == {}


@pytest.mark.parametrize(
    ("method", "kernels", "work", "message"),
    [
        (None, [], WORK, "checkpoint: vLLM computes no layer of it as quantized, but 'w8a8' is quantized"),
        ("awq", [], WORK, "vLLM computes no layer of it as quantized"),
        ("awq", ["A"], UNQUANTIZED, "vLLM loads it as awq, but 'bf16' is unquantized"),
    ],
)
def test_another_scheme_is_refused(
    folder: Path, method: str | None, kernels: list[str], work: EvaluateWork, message: str
) -> None:
    """A quantized variant that vLLM computes unquantized is refused, and the other way round."""
    with pytest.raises(WorkerError, match=message):
        describe_quantization(engine(method, kernels), replace(work, checkpoint_path=str(folder)))


def test_kernels_that_were_asked_for_are_used(tmp_path: Path) -> None:
    """vLLM selects other kernels where it has none of the requested kind: then nothing is evaluated."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    work = replace(WORK, checkpoint_path=str(folder), options=(("linear_backend", "emulation"),))
    used = "CompressedTensorsLinearMethod CompressedTensorsW4A4Fp4 EmulationNvFp4LinearKernel"
    found = describe_quantization(engine("compressed-tensors", [used]), work)
    assert found["quantization_kernels"] == used
    with pytest.raises(WorkerError, match=r"linear_backend = 'emulation' was requested, but vLLM computes with"):
        describe_quantization(engine("compressed-tensors", [used.replace("Emulation", "Marlin")]), work)


class Config(SimpleNamespace):
    """A configuration of transformers."""

    def get_text_config(self) -> Config:
        """Return itself: it has no other parts."""
        return self


def loaded(config: Config, *unused: list[str]) -> SimpleNamespace:
    """An engine whose workers have not read these tensors."""
    settings = SimpleNamespace(model_config=SimpleNamespace(hf_config=config))
    return SimpleNamespace(vllm_config=settings, collective_rpc=lambda _: list(unused))


def test_a_tensor_that_no_worker_reads_is_refused(folder: Path) -> None:
    """With several workers each reads its layers or experts; only what none reads does not belong to the model."""
    work = replace(WORK, checkpoint_path=str(folder))
    check_tensors(loaded(Config(num_hidden_layers=2), ["a.weight"], ["b.weight"]), work)
    with pytest.raises(UserInputError, match=r"the weight b\.weight in its files does not belong to the model"):
        check_tensors(loaded(Config(num_hidden_layers=2), ["a.weight", "b.weight"], ["b.weight"]), work)


@pytest.mark.parametrize(
    ("name", "accepting", "refusing"),
    [
        ("lm_head.weight", {"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
        ("model.layers.2.eh_proj.weight", {"num_nextn_predict_layers": 1}, {}),
    ],
)
def test_tensors_that_the_model_does_not_need_are_accepted(
    folder: Path, name: str, accepting: dict[str, object], refusing: dict[str, object]
) -> None:
    """A stored copy of a tied head, and a layer for multi-token prediction."""
    work = replace(UNQUANTIZED, checkpoint_path=str(folder))
    check_tensors(loaded(Config(num_hidden_layers=2, **accepting), [name]), work)
    with pytest.raises(UserInputError, match="does not belong to the model"):
        check_tensors(loaded(Config(num_hidden_layers=2, **refusing), [name]), work)


def test_a_layer_of_the_model_is_no_layer_for_multi_token_prediction(folder: Path) -> None:
    """With num_hidden_layers too small by one, vLLM leaves out the last layer and computes the others."""
    work = replace(UNQUANTIZED, checkpoint_path=str(folder))
    config = Config(num_hidden_layers=2, num_nextn_predict_layers=1)
    prediction = ["model.layers.2.eh_proj.weight", "model.layers.2.mlp.up_proj.weight"]
    check_tensors(loaded(config, prediction), work)
    with pytest.raises(UserInputError, match="does not belong to the model"):
        check_tensors(loaded(config, prediction[1:]), work)


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_head_in_files_of_pytorch_must_equal_the_embeddings_that_vllm_uses(tmp_path: Path, *, is_equal: bool) -> None:
    """`hpcq plan` compares both in safetensors files only."""
    embeddings = torch.ones(4, 2)
    head = embeddings.clone() if is_equal else embeddings + 1
    torch.save({"model.embed_tokens.weight": embeddings, "lm_head.weight": head}, tmp_path / "pytorch_model.bin")
    engine = loaded(Config(num_hidden_layers=2, tie_word_embeddings=True), ["lm_head.weight"])
    message = r"lm_head\.weight differs from model\.embed_tokens\.weight, although its config\.json ties them"
    with nullcontext() if is_equal else pytest.raises(UserInputError, match=message):
        check_tensors(engine, replace(UNQUANTIZED, checkpoint_path=str(tmp_path)))


def test_an_order_of_inputs_is_needed_if_it_is_not_the_usual_one(folder: Path) -> None:
    """vLLM drops `g_idx` of GPTQ; with activation order the weights would be those of other inputs."""
    gptq = replace(INT8, activation_order=False)
    work = replace(WORK, checkpoint_path=str(folder), variant=replace(WORK.variant, scheme=gptq))
    engine = loaded(Config(num_hidden_layers=2), ["model.layers.0.mlp.up_proj.g_idx"])
    check_tensors(engine, work)
    ordered = replace(work, variant=replace(work.variant, scheme=replace(gptq, activation_order=True)))
    with pytest.raises(UserInputError, match="g_idx"):
        check_tensors(engine, ordered)
