"""Checkpoints that llmcompressor creates, tested on a random Llama of two layers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.core.attempts import Attempt
from hpcq.core.digests import known_digest_of_model
from hpcq.core.errors import UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work_records import Calibration, Model, QuantizeWork
from hpcq.plan.memory.weights import base_bytes, checkpoint_bytes, weight_bytes
from hpcq.quantize.worker import quantize
from tests.checkpoint_weights import rewrite_weights
from tests.unit.quantize.conftest import SCHEMES

torch = pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]
CheckpointOf = Callable[[str], Path]

# By scheme: the format in config.json, and the dtype of the weights in model.safetensors.
FORMATS = {
    "fp8-dynamic": ("float-quantized", "float8_e4m3fn"),
    "fp8": ("float-quantized", "float8_e4m3fn"),
    "gptq-w4a16-g64": ("pack-quantized", "int32"),
    "gptq-w8a16": ("pack-quantized", "int32"),
    "smoothquant-w8a8": ("int-quantized", "int8"),
    "awq-w4a16-g64": ("pack-quantized", "int32"),
    "fp8-block": ("float-quantized", "float8_e4m3fn"),
    "fp8-dynamic-kv8": ("float-quantized", "float8_e4m3fn"),
    "gptq-nvfp4": ("nvfp4-pack-quantized", "uint8"),
    "mxfp4": ("mxfp4-pack-quantized", "uint8"),
    "mxfp8": ("mxfp8-quantized", "float8_e4m3fn"),
    "nvfp4": ("nvfp4-pack-quantized", "uint8"),
    "nvfp4-w4a16": ("nvfp4-pack-quantized", "uint8"),
    "w4a8-fp8": ("pack-quantized", "int32"),
}
TOKENS = torch.arange(2, 66).reshape(1, 64)


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def load_model(folder: Path) -> Any:
    """Load the checkpoint with transformers in float32, with decompressed weights."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    quantized = "quantization_config" in (folder / "config.json").read_text(encoding="utf-8")
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model.float()  # weights in FP4 are decompressed to bfloat16


def logits(model: Any) -> Any:
    """The model's logits for a fixed sequence."""
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", FORMATS)
def test_each_scheme_gives_a_complete_checkpoint(name: str, checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """A checkpoint is stored in its scheme's number format, loads, and has nearly the logits of its base."""
    folder = checkpoint_of(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored_format, dtype = FORMATS[name]
    assert config["quantization_config"]["format"] == stored_format
    weight = "weight_packed" if "pack-quantized" in stored_format else "weight"
    assert str(tensors(folder)[f"model.layers.0.mlp.down_proj.{weight}"].dtype) == f"torch.{dtype}"
    both = (logits(load_model(path)).flatten() for path in (folder, base_checkpoint))
    least = 0.6 if name.endswith("fp4") else 0.8 if "w4" in name else 0.98  # W4A4 has the largest errors
    assert least < torch.cosine_similarity(*both, dim=0) < 0.99999


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_has_the_planned_size(name: str, checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """The planner predicts the size of all tensors (weights, scales, zero points and others) to the byte."""
    shape = read_checkpoint_shape(base_checkpoint)
    assert shape
    stored = sum(tensor.nbytes for tensor in tensors(checkpoint_of(name)).values())
    assert weight_bytes(shape, SCHEMES[name]) == stored


@pytest.mark.parametrize("name", ["fp8", "gptq-w4a16-g64"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_a_base_of_another_dtype_has_the_planned_size(
    name: str, dtype: str, size: int, make_work: MakeWork, attempt: Attempt, base_checkpoint: Path, tmp_path: Path
) -> None:
    """A base in another type, which its config.json does not state: scales and unquantized tensors keep that type."""
    base, folder = Path(shutil.copytree(base_checkpoint, tmp_path / "base")), tmp_path / "quantized"
    rewrite_weights(base, dtype)
    quantize(make_work(name, folder, model=Model(id="tests/tiny-llama", path=str(base))), attempt)

    shape, made = read_checkpoint_shape(base), tensors(folder)
    assert (shape.stored_dtype, shape.value_bytes) == (dtype, size)
    assert base_bytes(shape) == sum(tensor.nbytes for tensor in tensors(base).values())
    assert checkpoint_bytes(shape, SCHEMES[name]) == sum(tensor.nbytes for tensor in made.values())
    packed = {torch.int32, torch.int64, torch.float8_e4m3fn}
    assert {tensor.dtype for tensor in made.values()} - packed == {getattr(torch, dtype)}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == dtype


def test_unquantized_tensors_keep_their_bits(checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """Computed in float32, saved in bfloat16: embeddings and norms keep the base's bits, the head stays tied."""
    folder = checkpoint_of("gptq-w4a16-g64")
    base, quantized = tensors(base_checkpoint), tensors(folder)
    assert "lm_head.weight" not in quantized
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(base[name], quantized[name])
    assert {tensor.dtype for tensor in quantized.values()} <= {torch.bfloat16, torch.int32, torch.int64}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["gptq-w4a16-g64", "smoothquant-w8a8", "awq-w4a16-g64"])
def test_two_runs_give_the_same_bits(
    name: str,
    make_work: MakeWork,
    checkpoint_of: CheckpointOf,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quantizing twice gives equal weight files, byte for byte, and the working directory stays clean."""
    elsewhere = tmp_path / "working-directory"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    quantize(make_work(name, tmp_path / "second"), attempt)
    first, second = checkpoint_of(name), tmp_path / "second"
    assert digest_of_file(first / "model.safetensors") == digest_of_file(second / "model.safetensors")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["fp8-dynamic", "fp8", "smoothquant-w8a8", "fp8-block", "nvfp4", "mxfp4", "mxfp8", "w4a8-fp8"]
)
def test_transformers_simulates_activation_quantization(name: str, checkpoint_of: CheckpointOf) -> None:
    """A loaded checkpoint rounds activations: without that its logits change."""
    model = load_model(checkpoint_of(name))
    as_loaded = logits(model)
    for module in model.modules():
        module.quantization_enabled = False
    assert (as_loaded - logits(model)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gptq-w4a16-g64", "gptq-w8a16", "awq-w4a16-g64"])
def test_weight_only_schemes_do_not_round_activations(name: str, checkpoint_of: CheckpointOf) -> None:
    """W4A16 and W8A16 have the logits of an unquantized model with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = load_model(checkpoint_of(name))
    plain = LlamaForCausalLM(LlamaConfig.from_pretrained(checkpoint_of(name))).float().eval()
    plain.load_state_dict({key: model.state_dict()[key] for key in plain.state_dict()})
    assert torch.equal(logits(plain), logits(model))


def test_the_saved_scales_are_those_used_for_quantization(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving in bfloat16 changes no quantized weight: loaded weights equal those in memory in float32."""
    from hpcq.quantize import llmcompressor

    in_memory: dict[str, Any] = {}
    save = llmcompressor.save_checkpoint

    def record_and_save(model: Any, *rest: Any, **options: Any) -> None:
        in_memory.update(
            (name, tensor.clone()) for name, tensor in model.state_dict().items() if name.endswith("proj.weight")
        )
        save(model, *rest, **options)

    monkeypatch.setattr(llmcompressor, "save_checkpoint", record_and_save)
    quantize(make_work("gptq-w8a16", tmp_path / "again"), attempt)
    weights = load_model(checkpoint_of("gptq-w8a16")).state_dict()
    assert len(in_memory) == 14
    assert all(torch.equal(tensor, weights[name]) for name, tensor in in_memory.items())


def test_tokenizer_and_generation_settings_are_copied(checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """Tokenizer files and generation settings are the base's, byte for byte."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert digest_of_file(checkpoint_of("fp8-dynamic") / name) == digest_of_file(base_checkpoint / name)


def test_the_metadata_has_the_provenance(
    make_work: MakeWork, checkpoint_of: CheckpointOf, calibration: Calibration, tmp_path: Path
) -> None:
    """hpcq.json has address, recipe, versions, digests, seed, seconds, device, and no irrelevant warnings."""
    folder = checkpoint_of("smoothquant-w8a8")
    record = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    assert record["address"] == make_work("smoothquant-w8a8", tmp_path).variant.address
    assert [name for name, _ in record["recipe"]] == ["SmoothQuantModifier", "GPTQModifier"]
    assert {"torch", "transformers", "llmcompressor", "compressed-tensors"} <= set(record["versions"])
    assert record["variant"]["calibration"]["digest"] == calibration.digest
    assert (record["seed"], record["device"], record["saved_dtype"]) == (1234, "cpu", "bfloat16")
    assert list(record["seconds"]) == ["calibrating", "checking", "hashing", "loading", "saving"]
    assert record["digest"] == known_digest_of_model(folder, ignored=("hpcq.json",))
    assert not [warning for warning in record["warnings"] if warning.startswith(("time ", "error "))]
    other_files = sum(item.stat().st_size for item in folder.iterdir() if item.name != "hpcq.json")
    assert record["bytes_on_disk"] == other_files


def test_progress_names_layers(
    make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration reports the current layer and the number of layers."""
    monkeypatch.setattr("hpcq.quantize.worker.REPORT_INTERVAL_S", 0.0)
    phases: dict[str, None] = {}
    update = attempt.update

    def record_and_update(**changes: Any) -> None:
        if "phase" in changes:
            phases[changes["phase"]] = None
        update(**changes)

    monkeypatch.setattr(attempt, "update", record_and_update)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoint"), attempt)
    calibrating = [f"calibrating {what}" for what in ("what precedes layer 1", "layer 1 of 2", "layer 2 of 2")]
    saving = ["saving", "checking the saved checkpoint", "hashing", "done"]
    assert list(phases) == ["loading", "calibrating", *calibrating, *saving]
    assert attempt.record.facts["bytes_on_disk"] > 0


def test_too_little_text_leaves_no_checkpoint(
    make_work: MakeWork, attempt: Attempt, calibration: Calibration, tmp_path: Path
) -> None:
    """A calibration text that is too short is refused with a message; only the released claim remains."""
    short = dataclasses.replace(calibration, samples=10_000)
    with pytest.raises(UserInputError, match=r"but 10000 samples of 64 need 640000"):
        quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoints" / "x", calibration=short), attempt)
    assert list((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints" / "x.claim"]
    assert (tmp_path / "checkpoints" / "x.claim" / "1" / "released").exists()
