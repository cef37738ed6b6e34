"""Plain models with the numbers of quantized checkpoints: a reference that is computed without compressed-tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

_FP8_MAX = 448.0
_PARTS = ("weight_packed", "weight_shape", "weight_scale")


def write_dequantized(checkpoint: Path, folder: Path) -> Path:
    """Write the model of a compressed-tensors checkpoint (FP8, or symmetric packed integers) in float32."""
    tensors = {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}
    plain = {
        name: tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith(_PARTS) and f"{name}_scale" not in tensors
    }
    for layer in _quantized_layers(tensors):
        scale = tensors[f"{layer}.weight_scale"].float()
        packed = tensors.get(f"{layer}.weight_packed")
        steps = (
            tensors[f"{layer}.weight"].float()
            if packed is None
            else _unpacked(packed, tensors[f"{layer}.weight_shape"])
        )
        plain[f"{layer}.weight"] = (steps.reshape(*scale.shape, -1) * scale[..., None]).reshape(steps.shape)
    folder.mkdir(parents=True)
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}), encoding="utf-8")
    for path in checkpoint.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def round_inputs(model: torch.nn.Module, checkpoint: Path) -> int:
    """Round inputs as FP8 does, with one scale per token, if a checkpoint declares it; return of how many layers.

    Experts have unrounded inputs in transformers.
    """
    settings = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if not any(group["input_activations"] for group in settings["config_groups"].values()):
        return 0
    names = {name for path in checkpoint.glob("*.safetensors") for name in load_file(path)}
    layers = [name for name in _quantized_layers(names) if ".experts." not in name]
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(_rounded)
    return len(layers)


def _quantized_layers(names: Any) -> list[str]:
    return [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]


def _unpacked(packed: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Return integers that are packed along the inputs, the lowest bits first, with an offset of half of the range."""
    outputs, inputs = shape.tolist()
    words = packed.numpy().view(np.uint32)
    bits = words.shape[1] * 32 // inputs
    found = np.stack([words >> (bits * number) & (2**bits - 1) for number in range(32 // bits)], axis=-1)
    return torch.from_numpy(found.reshape(outputs, -1).astype(np.float32) - 2 ** (bits - 1))


def _rounded(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the first argument of a layer as FP8 stores it, with one scale per token."""
    values = arguments[0]
    scale = values.abs().amax(-1, keepdim=True) / _FP8_MAX
    return ((values / scale).to(torch.float8_e4m3fn).to(values.dtype) * scale, *arguments[1:])
