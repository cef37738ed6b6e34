"""Small checkpoints that other tools quantize with their own code: llmcompressor, auto-round, bitsandbytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

GROUP = 64
Maker = Callable[[Path, Path], None]


def _load(base: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **options)


def compressed_tensors(scheme: str) -> Maker:
    """A checkpoint of llmcompressor in one of its preset schemes, which needs no calibration."""

    def make(base: Path, folder: Path) -> None:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = _load(base)
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
        model.save_pretrained(folder, save_compressed=True)

    return make


def static_fp8(base: Path, folder: Path) -> None:
    """A checkpoint of llmcompressor with static scales of the activations, calibrated with a few sentences."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = _load(base)
    oneshot(
        model=model,
        recipe=QuantizationModifier(targets="Linear", scheme="FP8", ignore=["lm_head"]),
        dataset=Dataset.from_list([{"text": f"{number} times {number} is {number**2}."} for number in range(8)]),
        tokenizer=AutoTokenizer.from_pretrained(base),
        num_calibration_samples=8,
        max_seq_length=32,
    )
    model.save_pretrained(folder, save_compressed=True)


def auto_round(export: str, *, bits: int = 4, symmetric: bool) -> Maker:
    """A checkpoint of auto-round, rounded to nearest, exported as AutoGPTQ or AutoAWQ writes it."""

    def make(base: Path, folder: Path) -> None:
        from auto_round import AutoRound

        settings = {"bits": bits, "group_size": GROUP, "sym": symmetric}
        tokenizer = AutoTokenizer.from_pretrained(base)
        # Without optimization it needs no calibration text.
        rounding = AutoRound(_load(base), tokenizer, iters=0, disable_opt_rtn=True, device_map="cpu", **settings)
        rounding.quantize_and_save(str(folder), format=export)
        [written] = folder.glob("*/config.json")
        for path in written.parent.iterdir():
            path.rename(folder / path.name)
        written.parent.rmdir()

    return make


def nf4(base: Path, folder: Path) -> None:
    """A checkpoint of bitsandbytes, saved by transformers."""
    settings: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **settings)
    _load(base, quantization_config=config).save_pretrained(folder)


def fp8(source: Maker, settings: dict[str, Any]) -> Maker:
    """A checkpoint of llmcompressor with the names and the configuration of another FP8 format."""

    def make(base: Path, folder: Path) -> None:
        source(base, folder)
        renames = (".weight_scale", ".weight_scale_inv") if "weight_block_size" in settings else ("", "")
        tensors = {
            name.removesuffix(renames[0]) + renames[1] if name.endswith(renames[0]) else name: tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))

    return make


MAKERS: dict[str, Maker] = {
    "ct-fp8": compressed_tensors("FP8_DYNAMIC"),
    "ct-fp8-block": compressed_tensors("FP8_BLOCK"),
    "ct-w8a8": compressed_tensors("W8A8"),
    "ct-w4a16": compressed_tensors("W4A16"),
    "gptq": auto_round("auto_gptq", symmetric=True),
    "gptq-asymmetric": auto_round("auto_gptq", symmetric=False),
    "gptq-8bit": auto_round("auto_gptq", bits=8, symmetric=True),
    "gptq-3bit": auto_round("auto_gptq", bits=3, symmetric=True),
    "awq": auto_round("auto_awq", symmetric=False),
    "nf4": nf4,
    "ct-fp8-static": static_fp8,
    "fp8-block": fp8(
        compressed_tensors("FP8_BLOCK"), {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    ),
    "fp8-static": fp8(static_fp8, {"quant_method": "fp8", "activation_scheme": "static"}),
    "fbgemm": fp8(compressed_tensors("FP8_DYNAMIC"), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
}
"""A small checkpoint of each format, by a short name."""


_FP4_VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def write_gpt_oss(base: Path, reference: Path, packed: Path) -> None:
    """Write a small gpt-oss with experts in MXFP4, as its publisher packs them, and the same numbers in bfloat16.

    No tool packs MXFP4 on a CPU. `base` has the tokenizer.
    """
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = GptOssConfig(vocab_size=260, pad_token_id=1, initializer_range=0.1, **sizes, **heads)
    torch.manual_seed(0)
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(reference)
    values = torch.tensor([*_FP4_VALUES, *(-value for value in _FP4_VALUES)])
    exact, stored = {}, {}
    for name, tensor in load_file(reference / "model.safetensors").items():
        exact[name] = stored[name] = tensor
        if ".experts." in name and not name.endswith("_bias"):
            del stored[name]
            groups = tensor.transpose(1, 2).float().unflatten(-1, (-1, 32))
            exponents = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
            codes = (groups.div(exponents.exp2()).unsqueeze(-1) - values).abs().argmin(-1)
            exact[name] = (values[codes] * exponents.exp2()).flatten(-2).transpose(1, 2).to(torch.bfloat16).contiguous()
            stored[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
            stored[f"{name}_scales"] = (exponents.squeeze(-1) + 127).to(torch.uint8)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    shutil.copytree(reference, packed)
    written = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**written, "quantization_config": settings}))
    for folder, tensors in ((reference, exact), (packed, stored)):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for tokenizer in base.glob("tokenizer*"):
            shutil.copy(tokenizer, folder)


def make_checkpoint(name: str, base: Path, folder: Path) -> Path:
    """Make the checkpoint `name` of the model in `base`, with the tokenizer of `base`."""
    folder.mkdir(parents=True)
    MAKERS[name](base, folder)
    for tokenizer in base.glob("tokenizer*"):
        shutil.copy(tokenizer, folder)
    return folder
