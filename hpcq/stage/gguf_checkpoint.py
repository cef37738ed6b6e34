"""Convert a GGUF file of the Llama architecture to a bf16 checkpoint folder that transformers and vLLM load.

Runs in the transformers environment: `python -m hpcq.stage.gguf_checkpoint INPUT.gguf OUTPUT_FOLDER`. The output is the
same bytes with every version of transformers, because the model's digest is part of every content address; therefore
this module writes the configuration files itself.

transformers 5.17's own GGUF loader reads such a file, but cannot save it, and its tokenizer is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hpcq.core.errors import WorkerError

CONTROL_TOKEN = 3
"""Token type of special tokens such as `<|im_end|>` in llama.cpp."""

MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufFile:
    """Metadata and tensors of a GGUF file. Tensors have transformers' names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = gguf.GGUFReader(path)
        architecture, pre_tokenizer = self.metadata("general.architecture"), self.metadata("tokenizer.ggml.pre")
        if (architecture, pre_tokenizer) != ("llama", "smollm"):
            raise WorkerError(
                f"{path}: architecture '{architecture}' with pre-tokenizer '{pre_tokenizer}' cannot be converted; "
                f"only 'llama' with 'smollm' is supported."
            )

    def metadata(self, name: str) -> Any:
        """Return the value of a metadata key.

        Raises:
            WorkerError: The file does not have the key.
        """
        field = self._reader.fields.get(name)
        if field is None:
            raise WorkerError(f"{self.path}: the metadata key '{name}' is missing. Use a complete GGUF file.")
        return field.contents()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors in bf16, by transformers' name."""
        return {
            checkpoint_name(tensor.name): self._dequantize(tensor)
            for tensor in sorted(self._reader.tensors, key=lambda tensor: str(tensor.name))
        }

    def _dequantize(self, tensor: Any) -> torch.Tensor:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = unpermute(values, self.metadata(heads[part]))
        return values.to(torch.bfloat16).contiguous()


def checkpoint_name(name: str) -> str:
    """Return transformers' name of a tensor, given llama.cpp's."""
    if name in MODEL_TENSORS:
        return MODEL_TENSORS[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{BLOCK_TENSORS[part]}.{kind}"


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order of q and k: its rotary embedding pairs neighbours, transformers' pairs halves.

    Args:
        weight: Shape (heads * head_dim, hidden_size).
        heads: Number of heads of this matrix.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def model_config(source: GgufFile, *, has_lm_head: bool) -> dict[str, Any]:
    """Return the content of config.json."""
    hidden = source.metadata("llama.embedding_length")
    heads = source.metadata("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": source.metadata("tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": source.metadata("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": source.metadata("llama.feed_forward_length"),
        "max_position_embeddings": source.metadata("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": source.metadata("llama.block_count"),
        "num_key_value_heads": source.metadata("llama.attention.head_count_kv"),
        "pad_token_id": source.metadata("tokenizer.ggml.padding_token_id"),
        # GGUF stores a 32-bit float: 1e-05 is read as 9.999999747378752e-06.
        "rms_norm_eps": float(f"{source.metadata('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": source.metadata("llama.rope.freq_base"),
        "tie_word_embeddings": not has_lm_head,
        "torch_dtype": "bfloat16",  # the name of `dtype` before transformers 4.56
        "use_cache": True,
        "vocab_size": source.metadata("llama.vocab_size"),
    }


def build_tokenizer(source: GgufFile) -> Tokenizer:
    """Return the byte-level BPE tokenizer of the 'smollm' pre-tokenizer: every digit is a separate token."""
    tokens = source.metadata("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in source.metadata("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = source.metadata("tokenizer.ggml.token_type")
    special = [token for token, token_type in zip(tokens, types, strict=True) if token_type == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(source: GgufFile) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, which includes the chat template."""
    tokens = source.metadata("tokenizer.ggml.tokens")
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special_tokens = {name: tokens[source.metadata(f"tokenizer.ggml.{key}_token_id")] for name, key in keys.items()}
    return {
        **special_tokens,
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": source.metadata("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.metadata("llama.context_length"),
        # Not GPT2Tokenizer: transformers 5 rebuilds it from its vocabulary and then no longer splits digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_checkpoint(gguf_path: Path, folder: Path) -> None:
    """Convert `gguf_path` and write the checkpoint's files to `folder`, which must exist."""
    source = GgufFile(gguf_path)
    tensors = source.tensors()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model_config(source, has_lm_head="lm_head.weight" in tensors)
    token_ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **token_ids})
    _write_json(folder / "tokenizer_config.json", tokenizer_config(source))
    build_tokenizer(source).save(str(folder / "tokenizer.json"))
    # safetensors 0.8 makes its files readable by the owner only; on a cluster, a group shares the cache.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
    except WorkerError as error:
        sys.exit(str(error))
