"""Files of checkpoints without weights, for tests that read only configurations and headers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})


def write_safetensors(path: Path, **shapes: tuple[int, ...]) -> None:
    """Write a safetensors file with bfloat16 zeros."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, size = end, 2
        for length in shape:
            size *= length
        end += size
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(end))


def complete(folder: Path) -> None:
    """Add a tokenizer, and weights in a format of which no header is read."""
    (folder / "tokenizer.json").write_text(TOKENIZER)
    if not any(folder.glob("*.safetensors*")):
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
            file.writestr("archive/data.pkl", b"weights")


def write_checkpoint(folder: Path, quantization: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a Llama's configuration, tokenizer and weights; `quantization` is its quantization_config."""
    folder.mkdir(parents=True)
    declared = {"quantization_config": quantization} if quantization else {}
    (folder / "config.json").write_text(json.dumps({**LLAMA, **declared, **config}))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    write_safetensors(folder / "model.safetensors", weight=(1000, 1000))
    return folder
