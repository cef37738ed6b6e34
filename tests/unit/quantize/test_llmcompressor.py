"""Facts about the checkpoints that llmcompressor makes, on a random Llama of two layers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.attempts import Attempt
from hpcq.errors import UserInputError
from hpcq.files import digest_of_file
from hpcq.quantize.worker import quantize
from hpcq.units import Calibration, QuantizeWork

torch = pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]

# Bytes in the weights of one block, by scheme: 114,688 weights at their width, scales and shapes besides.
STORED = {
    "fp8-dynamic": ("float-quantized", "float8_e4m3fn"),
    "fp8": ("float-quantized", "float8_e4m3fn"),
    "gptq-w4a16-g64": ("pack-quantized", "int32"),
    "gptq-w8a16": ("pack-quantized", "int32"),
    "smoothquant-w8a8": ("int-quantized", "int8"),
    "awq-w4a16-g64": ("pack-quantized", "int32"),
}
WEIGHT_ONLY = ("gptq-w4a16-g64", "gptq-w8a16", "awq-w4a16-g64")
TOKENS = torch.arange(2, 66).reshape(1, 64)


def tensors(folder: Path) -> dict[str, Any]:
    """Everything in a checkpoint's safetensors."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def logits(folder: Path, **options: Any) -> Any:
    """What the checkpoint in `folder` answers, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", STORED)
def test_each_scheme_makes_a_whole_checkpoint(
    name: str, make_work: MakeWork, attempt: Attempt, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A checkpoint loads, is close to its base, is stored in its scheme's number format, and nothing else is written."""
    elsewhere = tmp_path / "working-directory"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    work = make_work(name)
    quantize(work, attempt)
    folder = Path(work.checkpoint_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layout, kind = STORED[name]
    assert config["quantization_config"]["format"] == layout
    stored = tensors(folder)
    weight = "weight_packed" if layout == "pack-quantized" else "weight"
    assert str(stored[f"model.layers.0.mlp.down_proj.{weight}"].dtype) == f"torch.{kind}"
    agreement = torch.cosine_similarity(logits(folder).flatten(), logits(base_checkpoint).flatten(), dim=0)
    assert (0.8 if "w4" in name else 0.98) < agreement < 0.999999
    assert list(elsewhere.iterdir()) == []


def test_all_else_is_saved_as_the_base_has_it(make_work: MakeWork, attempt: Attempt, base_checkpoint: Path) -> None:
    """Computed in float32, saved in bfloat16: embeddings and norms keep the base's bits, the head stays tied to them."""
    work = make_work("gptq-w4a16-g64")
    quantize(work, attempt)
    base, made = tensors(base_checkpoint), tensors(Path(work.checkpoint_path))
    assert "lm_head.weight" not in made
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(base[name], made[name])
    assert {tensor.dtype for tensor in made.values()} <= {torch.bfloat16, torch.int32, torch.int64}
    assert json.loads((Path(work.checkpoint_path) / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["fp8-dynamic", "gptq-w4a16-g64", "smoothquant-w8a8", "awq-w4a16-g64"])
def test_two_runs_give_the_same_bits(name: str, make_work: MakeWork, attempt: Attempt) -> None:
    """Quantizing twice gives equal weight files, byte for byte."""
    works = [make_work(name, folder=folder) for folder in ("first", "second")]
    for work in works:
        quantize(work, attempt)
    first, second = (digest_of_file(Path(work.checkpoint_path) / "model.safetensors") for work in works)
    assert first == second


@pytest.mark.parametrize("name", ["fp8-dynamic", "fp8", "smoothquant-w8a8"])
def test_transformers_simulates_activation_quantization(name: str, make_work: MakeWork, attempt: Attempt) -> None:
    """A loaded checkpoint rounds activations: with that switched off its answers change."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    work = make_work(name)
    quantize(work, attempt)
    model = AutoModelForCausalLM.from_pretrained(
        work.checkpoint_path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    ).eval()
    with torch.no_grad():
        as_loaded = model(TOKENS).logits
        for module in model.modules():
            module.quantization_enabled = False
        weights_only = model(TOKENS).logits
    assert torch.equal(as_loaded, logits(Path(work.checkpoint_path)))
    assert (as_loaded - weights_only).abs().max() > 1e-3


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_weight_only_schemes_do_not_round_activations(name: str, make_work: MakeWork, attempt: Attempt) -> None:
    """W4A16 and W8A16 answer as a plain model with the same weights does."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

    work = make_work(name)
    quantize(work, attempt)
    loaded = AutoModelForCausalLM.from_pretrained(
        work.checkpoint_path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    plain = LlamaForCausalLM(LlamaConfig.from_pretrained(work.checkpoint_path)).float().eval()
    weights = loaded.state_dict()
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    with torch.no_grad():
        assert torch.equal(plain(TOKENS).logits, loaded(TOKENS).logits)


def test_tokenizer_and_generation_settings_are_copied(
    make_work: MakeWork, attempt: Attempt, base_checkpoint: Path
) -> None:
    """The tokenizer's and generation's files are the base's, byte for byte."""
    work = make_work("fp8-dynamic")
    quantize(work, attempt)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert digest_of_file(Path(work.checkpoint_path) / name) == digest_of_file(base_checkpoint / name)


def test_the_metadata_tells_how_it_came_to_be(make_work: MakeWork, attempt: Attempt, calibration: Calibration) -> None:
    """hpcq.json holds recipe, versions, digests, seeds, seconds, memory and device, and the attempt the measured part."""
    work = make_work("smoothquant-w8a8")
    quantize(work, attempt)
    record = json.loads((Path(work.checkpoint_path) / "hpcq.json").read_text(encoding="utf-8"))
    assert record["address"] == work.variant.address
    assert [name for name, _ in record["recipe"]] == ["SmoothQuantModifier", "GPTQModifier"]
    assert {"torch", "transformers", "llmcompressor", "compressed-tensors"} <= set(record["versions"])
    assert record["variant"]["calibration"]["digest"] == calibration.digest
    assert (record["seed"], record["device"], record["saved_dtype"]) == (1234, "cpu", "bfloat16")
    assert list(record["seconds"]) == ["calibrating", "loading", "saving"]
    assert not [warning for warning in record["warnings"] if "round-to-nearest" in warning or "METRIC" in warning]
    assert attempt.record.facts["bytes_on_disk"] == record["bytes_on_disk"] > 0


def test_progress_names_layers(make_work: MakeWork, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration reports the layer that it has reached, of how many."""
    monkeypatch.setattr("hpcq.quantize.worker.REPORT_INTERVAL_S", 0.0)
    phases: list[str] = []
    update = attempt.update
    monkeypatch.setattr(attempt, "update", lambda **changes: (phases.append(changes["phase"]), update(**changes)))
    quantize(make_work("gptq-w4a16-g64"), attempt)
    in_order = list(dict.fromkeys(phases))
    expected = ["loading", "calibrating", "calibrating layer 1 of 2", "calibrating layer 2 of 2", "saving", "done"]
    assert in_order == expected


def test_a_failed_hessian_is_not_kept_quiet(make_work: MakeWork, attempt: Attempt) -> None:
    """Layers that GPTQ could not do and rounded to nearest are named among the metadata's warnings."""
    work = make_work("gptq-w4a16-g64")
    scheme = dataclasses.replace(work.variant.scheme, damping=-2.0)
    work = dataclasses.replace(work, variant=dataclasses.replace(work.variant, scheme=scheme))
    quantize(work, attempt)
    record = json.loads((Path(work.checkpoint_path) / "hpcq.json").read_text(encoding="utf-8"))
    assert any("round-to-nearest instead of GPTQ" in warning for warning in record["warnings"])


def test_too_little_text_leaves_nothing_behind(make_work: MakeWork, attempt: Attempt, calibration: Calibration) -> None:
    """A calibration text that is too short is a sentence, and no folder."""
    short = dataclasses.replace(calibration, samples=10_000)
    work = make_work("gptq-w4a16-g64", calibration=short)
    with pytest.raises(UserInputError, match=r"but 10000 samples of 64 need 640000"):
        quantize(work, attempt)
    checkpoint = Path(work.checkpoint_path)
    assert not [item for item in checkpoint.parent.iterdir() if checkpoint.name in item.name]
