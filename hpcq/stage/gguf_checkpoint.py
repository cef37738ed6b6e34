"""Turns a GGUF file of the Llama architecture into a bf16 checkpoint folder that transformers and vLLM load.

A worker: runs in the transformers environment as `python -m hpcq.stage.gguf_checkpoint IN OUT`. Knows GGUF's names and
transformers' files; must not know where either comes from. The same input gives the same bytes, whatever the version of
transformers: configuration files are written by hand, because the model's digest is part of every content address.

transformers 5.17's own GGUF loader reads such a file but cannot save it again, and gets the tokenizer wrong.
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

from hpcq.core.errors import WorkFailed

CONTROL_TOKEN = 3
"""llama.cpp's token type of special tokens such as `<|im_end|>`."""

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
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
    """A GGUF file's settings and tensors under the names that transformers gives them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = gguf.GGUFReader(path)
        architecture, splitting = self.setting("general.architecture"), self.setting("tokenizer.ggml.pre")
        if (architecture, splitting) != ("llama", "smollm"):
            raise WorkFailed(
                f"{path}: architecture '{architecture}' with pre-tokenizer '{splitting}' cannot be converted; "
                f"only 'llama' with 'smollm' can."
            )

    def setting(self, name: str) -> Any:
        """The value of one of the file's settings; `WorkFailed` where it has none."""
        field = self._reader.fields.get(name)
        if field is None:
            raise WorkFailed(f"{self.path}: the setting '{name}' is missing; use a complete GGUF file.")
        return field.contents()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor in bf16, by transformers' name."""
        return {
            checkpoint_name(tensor.name): self._restored(tensor)
            for tensor in sorted(self._reader.tensors, key=lambda tensor: str(tensor.name))
        }

    def _restored(self, tensor: Any) -> torch.Tensor:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = unpermuted(values, self.setting(heads[part]))
        return values.to(torch.bfloat16).contiguous()


def checkpoint_name(name: str) -> str:
    """transformers' name of the tensor that llama.cpp calls `name`."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{BLOCK_NAMES[part]}.{kind}"


def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's reordering of q and k: its rotary embedding pairs neighbours, transformers' pairs halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def configuration(source: GgufFile, *, has_own_head: bool) -> dict[str, Any]:
    """The content of config.json."""
    hidden = source.setting("llama.embedding_length")
    heads = source.setting("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": source.setting("tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": source.setting("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": source.setting("llama.feed_forward_length"),
        "max_position_embeddings": source.setting("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": source.setting("llama.block_count"),
        "num_key_value_heads": source.setting("llama.attention.head_count_kv"),
        "pad_token_id": source.setting("tokenizer.ggml.padding_token_id"),
        # GGUF holds it as a 32-bit float: 9.999999747378752e-06 was 1e-05.
        "rms_norm_eps": float(f"{source.setting('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": source.setting("llama.rope.freq_base"),
        "tie_word_embeddings": not has_own_head,
        "torch_dtype": "bfloat16",  # what `dtype` was called before transformers 4.56
        "use_cache": True,
        "vocab_size": source.setting("llama.vocab_size"),
    }


def tokenizer(source: GgufFile) -> Tokenizer:
    """The byte-level BPE tokenizer of the 'smollm' kind: every digit is a token of its own."""
    tokens = source.setting("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in source.setting("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    kinds = source.setting("tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def tokenizer_configuration(source: GgufFile) -> dict[str, Any]:
    """The content of tokenizer_config.json, the chat template in it."""
    tokens = source.setting("tokenizer.ggml.tokens")
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    named = {role: tokens[source.setting(f"tokenizer.ggml.{name}_token_id")] for role, name in roles.items()}
    return {
        **named,
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": source.setting("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.setting("llama.context_length"),
        # Not GPT2Tokenizer: transformers 5 rebuilds that one from its vocabulary and so loses the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_checkpoint(gguf_path: Path, folder: Path) -> None:
    """Fill the existing `folder` with a checkpoint made of `gguf_path`."""
    source = GgufFile(gguf_path)
    tensors = source.tensors()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = configuration(source, has_own_head="lm_head.weight" in tensors)
    ends = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})
    _write_json(folder / "tokenizer_config.json", tokenizer_configuration(source))
    tokenizer(source).save(str(folder / "tokenizer.json"))
    # safetensors 0.8 lets the owner alone read what it writes; a cluster's cache is read by a group.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
    except WorkFailed as failure:
        sys.exit(str(failure))
