"""Facts about the checkpoints that llmcompressor makes, on a random Llama of two layers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.configs import shape_of_checkpoint
from hpcq.core.attempts import Attempt
from hpcq.core.errors import UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work import Calibration, QuantizeWork
from hpcq.plan.memory.weights import weight_bytes
from hpcq.quantize.worker import quantize
from tests.unit.quantize.conftest import SCHEMES

torch = pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]
CheckpointOf = Callable[[str], Path]

# By scheme: the layout that config.json names, and the type of the numbers in model.safetensors.
STORED = {
    "fp8-dynamic": ("float-quantized", "float8_e4m3fn"),
    "fp8": ("float-quantized", "float8_e4m3fn"),
    "gptq-w4a16-g64": ("pack-quantized", "int32"),
    "gptq-w8a16": ("pack-quantized", "int32"),
    "smoothquant-w8a8": ("int-quantized", "int8"),
    "awq-w4a16-g64": ("pack-quantized", "int32"),
}
TOKENS = torch.arange(2, 66).reshape(1, 64)


def tensors(folder: Path) -> dict[str, Any]:
    """Everything in a checkpoint's safetensors."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def loaded(folder: Path) -> Any:
    """The checkpoint in `folder` as transformers loads it in float32, its weights decompressed at once."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    quantized = "quantization_config" in (folder / "config.json").read_text(encoding="utf-8")
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if quantized else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def logits(model: Any) -> Any:
    """What the model answers to the same tokens always."""
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", STORED)
def test_each_scheme_makes_a_whole_checkpoint(name: str, checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """A checkpoint is stored in its scheme's number format, loads, and answers nearly as its base does."""
    folder = checkpoint_of(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layout, kind = STORED[name]
    assert config["quantization_config"]["format"] == layout
    weight = "weight_packed" if layout == "pack-quantized" else "weight"
    assert str(tensors(folder)[f"model.layers.0.mlp.down_proj.{weight}"].dtype) == f"torch.{kind}"
    answers = (logits(loaded(at)).flatten() for at in (folder, base_checkpoint))
    assert (0.8 if "w4" in name else 0.98) < torch.cosine_similarity(*answers, dim=0) < 0.99999


@pytest.mark.parametrize("name", STORED)
def test_a_checkpoint_weighs_what_the_planner_says(
    name: str, checkpoint_of: CheckpointOf, base_checkpoint: Path
) -> None:
    """Weights, scales, zero points and all else: the bytes of every tensor are planned, to the byte."""
    shape = shape_of_checkpoint(base_checkpoint)
    assert shape
    stored = sum(tensor.nbytes for tensor in tensors(checkpoint_of(name)).values())
    assert weight_bytes(shape, SCHEMES[name]) == stored


def test_all_else_is_saved_as_the_base_has_it(checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """Computed in float32, saved in bfloat16: embeddings and norms keep the base's bits, the head stays tied."""
    folder = checkpoint_of("gptq-w4a16-g64")
    base, made = tensors(base_checkpoint), tensors(folder)
    assert "lm_head.weight" not in made
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(base[name], made[name])
    assert {tensor.dtype for tensor in made.values()} <= {torch.bfloat16, torch.int32, torch.int64}
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
    first, second = (digest_of_file(at / "model.safetensors") for at in (checkpoint_of(name), tmp_path / "second"))
    assert first == second
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["fp8-dynamic", "fp8", "smoothquant-w8a8"])
def test_transformers_simulates_activation_quantization(name: str, checkpoint_of: CheckpointOf) -> None:
    """A loaded checkpoint rounds activations: with that switched off its answers change."""
    model = loaded(checkpoint_of(name))
    as_loaded = logits(model)
    for module in model.modules():
        module.quantization_enabled = False
    assert (as_loaded - logits(model)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gptq-w4a16-g64", "gptq-w8a16", "awq-w4a16-g64"])
def test_weight_only_schemes_do_not_round_activations(name: str, checkpoint_of: CheckpointOf) -> None:
    """W4A16 and W8A16 answer as a plain model with the same weights does."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = loaded(checkpoint_of(name))
    plain = LlamaForCausalLM(LlamaConfig.from_pretrained(checkpoint_of(name))).float().eval()
    plain.load_state_dict({key: model.state_dict()[key] for key in plain.state_dict()})
    assert torch.equal(logits(plain), logits(model))


def test_the_saved_scales_are_those_that_the_weights_were_rounded_by(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving in bfloat16 changes no quantized weight: what is loaded equals what was in memory in float32."""
    from hpcq.quantize import llmcompressor

    seen: dict[str, Any] = {}
    save = llmcompressor._save

    def save_and_look(model: Any, *rest: Any) -> None:
        seen.update(
            (name, tensor.clone()) for name, tensor in model.state_dict().items() if name.endswith("proj.weight")
        )
        save(model, *rest)

    monkeypatch.setattr(llmcompressor, "_save", save_and_look)
    quantize(make_work("gptq-w8a16", tmp_path / "again"), attempt)
    weights = loaded(checkpoint_of("gptq-w8a16")).state_dict()
    assert len(seen) == 14
    assert all(torch.equal(tensor, weights[name]) for name, tensor in seen.items())


def test_tokenizer_and_generation_settings_are_copied(checkpoint_of: CheckpointOf, base_checkpoint: Path) -> None:
    """The tokenizer's and generation's files are the base's, byte for byte."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert digest_of_file(checkpoint_of("fp8-dynamic") / name) == digest_of_file(base_checkpoint / name)


def test_the_metadata_tells_how_it_came_to_be(
    make_work: MakeWork, checkpoint_of: CheckpointOf, calibration: Calibration, tmp_path: Path
) -> None:
    """hpcq.json holds address, recipe, versions, digests, seed, seconds, device, and real warnings only."""
    folder = checkpoint_of("smoothquant-w8a8")
    record = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    assert record["address"] == make_work("smoothquant-w8a8", tmp_path).variant.address
    assert [name for name, _ in record["recipe"]] == ["SmoothQuantModifier", "GPTQModifier"]
    assert {"torch", "transformers", "llmcompressor", "compressed-tensors"} <= set(record["versions"])
    assert record["variant"]["calibration"]["digest"] == calibration.digest
    assert (record["seed"], record["device"], record["saved_dtype"]) == (1234, "cpu", "bfloat16")
    assert list(record["seconds"]) == ["calibrating", "loading", "saving"]
    assert not [warning for warning in record["warnings"] if warning.startswith(("time ", "error "))]
    other_files = sum(item.stat().st_size for item in folder.iterdir() if item.name != "hpcq.json")
    assert record["bytes_on_disk"] == other_files


def test_progress_names_layers(
    make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration reports the layer that it has reached, of how many."""
    monkeypatch.setattr("hpcq.quantize.worker.REPORT_INTERVAL_S", 0.0)
    phases: dict[str, None] = {}
    update = attempt.update

    def update_and_look(**changes: Any) -> None:
        if "phase" in changes:
            phases[changes["phase"]] = None
        update(**changes)

    monkeypatch.setattr(attempt, "update", update_and_look)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoint"), attempt)
    calibrating = [f"calibrating {what}" for what in ("what precedes layer 1", "layer 1 of 2", "layer 2 of 2")]
    assert list(phases) == ["loading", "calibrating", *calibrating, "saving", "done"]
    assert attempt.record.facts["bytes_on_disk"] > 0


def test_a_failed_hessian_is_not_kept_quiet(make_work: MakeWork, attempt: Attempt, tmp_path: Path) -> None:
    """Layers that GPTQ could not do and rounded to nearest are named among the metadata's warnings."""
    usual = make_work("gptq-w4a16-g64", tmp_path / "checkpoint")
    scheme = dataclasses.replace(usual.variant.scheme, damping=-2.0)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoint", scheme=scheme), attempt)
    record = json.loads((tmp_path / "checkpoint" / "hpcq.json").read_text(encoding="utf-8"))
    assert any("round-to-nearest instead of GPTQ" in warning for warning in record["warnings"])


def test_too_little_text_leaves_nothing_behind(
    make_work: MakeWork, attempt: Attempt, calibration: Calibration, tmp_path: Path
) -> None:
    """A calibration text that is too short is a sentence, and no folder but the claim, which is given back."""
    short = dataclasses.replace(calibration, samples=10_000)
    with pytest.raises(UserInputError, match=r"but 10000 samples of 64 need 640000"):
        quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoints" / "x", calibration=short), attempt)
    assert list((tmp_path / "checkpoints").iterdir()) == [tmp_path / "checkpoints" / "x.claim"]
    assert (tmp_path / "checkpoints" / "x.claim" / "1" / "released").exists()
