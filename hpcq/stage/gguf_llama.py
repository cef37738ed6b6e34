"""Checkpoints of the Llama architecture with SmolLM's tokenizer, from GGUF files."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hpcq.stage.gguf_file import CONTROL_TOKEN, GgufFile

PRE_TOKENIZER = "smollm"
"""The only one of this architecture's pre-tokenizers that `build_tokenizer` knows."""

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


def tensors(source: GgufFile) -> dict[str, torch.Tensor]:
    """Return all tensors in bf16, by transformers' name."""
    return {checkpoint_name(name): _reordered(source, name, values) for name, values in source.tensors()}


def _reordered(source: GgufFile, name: str, values: torch.Tensor) -> torch.Tensor:
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    part = name.split(".")[-2]
    if part in heads:
        values = unpermute(values, source.metadata(heads[part]))
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
        "rms_norm_eps": source.real("llama.attention.layer_norm_rms_epsilon"),
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
    special = source.tokens_of_type(CONTROL_TOKEN)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(source: GgufFile) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, which includes the chat template."""
    return {
        **source.special_tokens(),
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": source.metadata("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.metadata("llama.context_length"),
        # Not GPT2Tokenizer: transformers 5 rebuilds it from its vocabulary and then no longer splits digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
