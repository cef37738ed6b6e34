"""Comparison of all weights, layer by layer: base, quantized model, and saved checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.errors import HpcqError, UserInputError, WorkerError
from hpcq.core.work_records import Model, QuantizeWork
from hpcq.quantize import llmcompressor
from hpcq.quantize.resumable_pipeline import ResumablePipeline
from hpcq.quantize.worker import quantize

torch = pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]
Damage = Callable[[MutableMapping[str, Any]], None]


def _exchange_layers(tensors: MutableMapping[str, Any]) -> None:
    first, second = (f"model.layers.{number}.self_attn.k_proj." for number in (0, 1))
    for part in ("weight", "weight_scale"):
        tensors[first + part], tensors[second + part] = tensors[second + part], tensors[first + part]


def _zero_rows(tensors: MutableMapping[str, Any]) -> None:
    scale = tensors["model.layers.1.self_attn.v_proj.weight_scale"]
    scale[: len(scale) // 8] = 0


def _change_norm(tensors: MutableMapping[str, Any]) -> None:
    tensors["model.layers.1.input_layernorm.weight"] *= 1.03


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (_exchange_layers, "model.layers.0.self_attn.k_proj.weight"),
        (_zero_rows, "model.layers.1.self_attn.v_proj.weight"),
        (_change_norm, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_one_wrong_layer_of_a_checkpoint_is_found(
    damage: Damage, name: str, make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single damaged layer, whose effect on the log-likelihoods may be small, prevents the commit and is named."""
    save = llmcompressor.save_checkpoint

    def damage_and_save(model: Any, base: Path, output: Path, *rest: Any, **options: Any) -> None:
        from safetensors.torch import load_file, save_file

        save(model, base, output, *rest, **options)
        tensors = {key: tensor.clone() for key, tensor in load_file(output / "model.safetensors").items()}
        damage(tensors)
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(llmcompressor, "save_checkpoint", damage_and_save)
    monkeypatch.setattr("hpcq.quantize.self_check.SAVED_TOLERANCES", {"float32": 100.0})
    with pytest.raises(WorkerError, match=rf"^The saved checkpoint is not the quantized model: {name} differs by "):
        quantize(make_work("fp8-dynamic", tmp_path / "checkpoints" / "x"), attempt)
    assert not (tmp_path / "checkpoints" / "x").exists()


@pytest.mark.parametrize("scheme", ["fp8-dynamic", "gptq-w4a16-g64", "smoothquant-w8a8"])
def test_one_layer_that_the_tool_damages_is_found(
    scheme: str, make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer whose weights are not those of the base prevents the commit and is named."""
    run = ResumablePipeline.__call__

    def run_and_damage(model: Any, *rest: Any) -> None:
        run(model, *rest)
        torch.nn.init.normal_(model.model.layers[1].self_attn.k_proj.weight, std=0.1)

    monkeypatch.setattr(ResumablePipeline, "__call__", staticmethod(run_and_damage))
    with pytest.raises(WorkerError, match=r"^model.layers.1.self_attn.k_proj.weight is not that of the base model: "):
        quantize(make_work(scheme, tmp_path / "checkpoints" / "x"), attempt)


@pytest.fixture
def unreached_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of which one layer is never called."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x))))


@pytest.mark.usefixtures("unreached_layer")
@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("fp8", r"^input_scale of model.layers.0.mlp.up_proj is not a positive number: "),
        ("gptq-w8a16", r"^GPTQ did not reach 2 of 14 layers"),
    ],
)
def test_a_layer_that_the_calibration_does_not_reach_is_found(
    scheme: str, message: str, make_work: MakeWork, attempt: Attempt, tmp_path: Path
) -> None:
    """Its scale was never computed: compressed-tensors leaves what was in memory there."""
    with pytest.raises(HpcqError, match=message):
        quantize(make_work(scheme, tmp_path / "checkpoints" / "x"), attempt)


def test_the_metadata_has_the_errors_of_the_weights(checkpoint_of: Callable[[str], Path]) -> None:
    """Four bits lose more than eight, and every layer is within what its scales explain."""
    errors = {}
    for name in ("fp8-dynamic", "gptq-w4a16-g64", "gptq-w8a16"):
        check = json.loads((checkpoint_of(name) / "hpcq.json").read_text(encoding="utf-8"))["self_check"]["weights"]
        assert check["median_error"] <= check["largest_error"]
        errors[name] = check["median_error"]
    assert errors["gptq-w8a16"] < errors["fp8-dynamic"] < errors["gptq-w4a16-g64"]


def base_with(change: Damage, base: Path, folder: Path) -> Path:
    """Copy a base checkpoint with changed weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _no_values(tensors: MutableMapping[str, Any]) -> None:
    tensors["model.layers.1.self_attn.v_proj.weight"].zero_()


def _overflow(tensors: MutableMapping[str, Any]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"][3, 3] = 3e38


def _pruned(tensors: MutableMapping[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][:40].zero_()


@pytest.mark.parametrize(
    ("change", "scheme", "message"),
    [
        (_no_values, "gptq-w8a16", r"^GPTQ has set all weights of model.layers.1.self_attn.o_proj to zero"),
        (_overflow, "fp8-dynamic", r"^The log-likelihoods of a text are not finite"),
    ],
)
def test_a_base_that_cannot_be_quantized_is_refused_with_its_reason(
    change: Damage,
    scheme: str,
    message: str,
    make_work: MakeWork,
    base_checkpoint: Path,
    attempt: Attempt,
    tmp_path: Path,
) -> None:
    """For inputs that are always zero, and weights that overflow, the message names the base as the cause."""
    base = Model(id="tests/m", path=str(base_with(change, base_checkpoint, tmp_path / "base")))
    with pytest.raises(UserInputError, match=message):
        quantize(make_work(scheme, tmp_path / "checkpoints" / "x", model=base), attempt)


def test_inputs_that_the_text_never_activates_are_counted(
    make_work: MakeWork, base_checkpoint: Path, attempt: Attempt, tmp_path: Path
) -> None:
    """GPTQ sets the weights of 40 inputs that are always zero to zero. The metadata have the number; no error."""
    base = Model(id="tests/m", path=str(base_with(_pruned, base_checkpoint, tmp_path / "base")))
    quantize(make_work("gptq-w8a16", tmp_path / "x", model=base), attempt)
    facts = json.loads((tmp_path / "x" / "hpcq.json").read_text(encoding="utf-8"))
    assert facts["self_check"]["weights"]["zeroed_inputs"] == 40
