"""Saving of a quantized model of transformers (5.17) as compressed tensors, with the other files of its base."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpcq.quantize.plain_files import copy_other_files

_CODE_KEYS = ("auto_map", "architectures")
_GLOBAL_SCALE = "_global_scale"
"""End of the names of NVFP4's scales per tensor, which are stored in float32."""


def save_checkpoint(model: Any, base: Path, output: Path, dtype_name: str, *, unquantized: Collection[str]) -> None:
    """Write the weights as compressed tensors, and copy the base's other files.

    Args:
        model: The quantized model.
        base: Folder of the base checkpoint.
        output: Folder to write to.
        dtype_name: Name of the dtype of the tensors that are not quantized, except those that the base has in float32.
        unquantized: Names of the linear layers that are not quantized.
    """
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from transformers import GenerationConfig

    dtype = getattr(torch, dtype_name)
    _forget_scale_dtypes(model)
    # Compress before casting: float8 and integer weights keep their dtype.
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    kept = _float32_names(base)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_kept = name.rpartition(".")[2] in kept or name.endswith(_GLOBAL_SCALE)
        if tensor.dtype == torch.float32 and not is_kept:
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
    # transformers refuses to write invalid settings, which publishers' checkpoints have; the base's are copied below.
    model.generation_config = GenerationConfig()
    model.save_pretrained(output)
    (output / "generation_config.json").unlink(missing_ok=True)
    copy_other_files(base, output)
    _complete_config(base, output, unquantized)


def _forget_scale_dtypes(model: Any) -> None:
    """Remove a setting that is no longer needed, and that older readers of the configuration do not know.

    It stays where the number format fixes the type of the scales: readers tell MXFP8 from FP8 by it.
    """
    import torch

    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        for arguments in (scheme.weights, scheme.input_activations) if scheme else ():
            if arguments is not None and arguments.scale_dtype in (torch.float32, torch.bfloat16, torch.float16):
                arguments.scale_dtype = None


def _float32_names(base: Path) -> set[str]:
    """Return the last parts of the names of the base's tensors in float32, such as 'e_score_correction_bias'.

    They need a higher precision than the other tensors, so they are saved in float32.
    """
    from safetensors import safe_open

    names: dict[str, set[str]] = {}
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                names.setdefault(name.rpartition(".")[2], set()).add(tensors.get_slice(name).get_dtype())
    return {name for name, dtypes in names.items() if dtypes == {"F32"}}


def _complete_config(base: Path, output: Path, unquantized: Collection[str]) -> None:
    """Add what the saved configuration may lack: the keys that select the model's classes, and unquantized layers.

    compressed-tensors 0.19 lists an unquantized layer only if layers of its class are quantized. Falcon's head has
    another class than its other layers; readers would expect a quantized head.
    """
    path = output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    original = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.update({key: original[key] for key in _CODE_KEYS if key in original and key not in config})
    ignored = config["quantization_config"]["ignore"]
    ignored.extend(name for name in unquantized if name not in ignored)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
