"""Checkpoints of Gemma 3's text models from GGUF files.

Source of what GGUF does not store (window pattern, local rope base, norms plus one): llama.cpp's conversion and model
code, and the published config.json of google/gemma-3-270m. The tokenizer's vocabulary, merges (in order) and added
tokens equal those of the published tokenizer.json, except the image token, for which a text model has no embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hpcq.stage.gguf_file import CONTROL_TOKEN, USER_DEFINED_TOKEN, GgufFile

PRE_TOKENIZER = "default"
SLIDING_LAYERS_PER_FULL_LAYER = 5
LOCAL_ROPE_BASE = 10_000.0

MODEL_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
)
"""Tokens that a decoded text omits; the other added tokens are text."""

_SPACE = "\u2581"
"""Character for a space in the vocabulary."""


def tensors(source: GgufFile) -> dict[str, torch.Tensor]:
    """Return all tensors in bf16, by transformers' name. GGUF stores the weights of norms plus one."""
    return {
        checkpoint_name(name): (values - 1 if name.endswith("_norm.weight") else values).to(torch.bfloat16)
        for name, values in source.tensors()
    }


def checkpoint_name(name: str) -> str:
    """Return transformers' name of a tensor, given llama.cpp's."""
    if name in MODEL_TENSORS:
        return MODEL_TENSORS[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{BLOCK_TENSORS[part]}.{kind}"


def model_config(source: GgufFile, *, has_lm_head: bool) -> dict[str, Any]:
    """Return the content of config.json."""
    layers = source.metadata("gemma3.block_count")
    head_size = source.metadata("gemma3.attention.key_length")
    pattern = SLIDING_LAYERS_PER_FULL_LAYER + 1
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": source.metadata("tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": source.metadata("tokenizer.ggml.eos_token_id"),
        "final_logit_softcapping": None,
        "head_dim": head_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": source.metadata("gemma3.embedding_length"),
        "intermediate_size": source.metadata("gemma3.feed_forward_length"),
        "layer_types": ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)],
        "max_position_embeddings": source.metadata("gemma3.context_length"),
        "model_type": "gemma3_text",
        "num_attention_heads": source.metadata("gemma3.attention.head_count"),
        "num_hidden_layers": layers,
        "num_key_value_heads": source.metadata("gemma3.attention.head_count_kv"),
        "pad_token_id": source.metadata("tokenizer.ggml.padding_token_id"),
        "query_pre_attn_scalar": head_size,
        "rms_norm_eps": source.real("gemma3.attention.layer_norm_rms_epsilon"),
        "rope_local_base_freq": LOCAL_ROPE_BASE,
        "rope_scaling": None,
        "rope_theta": source.metadata("gemma3.rope.freq_base"),
        "sliding_window": source.metadata("gemma3.attention.sliding_window"),
        "tie_word_embeddings": not has_lm_head,
        "torch_dtype": "bfloat16",  # the name of `dtype` before transformers 4.56
        # Without a version, transformers 5.17 warns that this could be an incorrect Mistral tokenizer.
        "transformers_version": "4.55.0",
        "use_cache": True,
        "vocab_size": len(source.metadata("tokenizer.ggml.tokens")),
    }


def build_tokenizer(source: GgufFile) -> Tokenizer:
    """Return the byte-pair encoding of the file's vocabulary, with the bytes of characters that it does not have."""
    vocabulary = {_stored(token): index for index, token in enumerate(source.metadata("tokenizer.ggml.tokens"))}
    special = source.special_tokens()
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges(source, vocabulary),
            unk_token=special["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
    )
    added = {*source.tokens_of_type(CONTROL_TOKEN), *source.tokens_of_type(USER_DEFINED_TOKEN)}
    in_order = sorted(map(_stored, added), key=vocabulary.__getitem__)
    for token in in_order:
        if token in SPECIAL_TOKENS:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        else:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer


def merges(source: GgufFile, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges in the order of SentencePiece: by score, then the longer left part first.

    GGUF has a score of -1000 for user-defined tokens; SentencePiece has 0, which is higher than all others.
    """
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
    rows = zip(*(source.metadata(key) for key in keys), strict=True)
    found = [
        (0.0 if token_type == USER_DEFINED_TOKEN else score, len(left), len(right), left, right)
        for token, score, token_type in rows
        for left, right in _parts(_stored(token))
        if left in vocabulary and right in vocabulary
    ]
    found.sort(key=lambda one: one[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _parts(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:end], token[end:]) for end in range(1, len(token)))


def _stored(token: str) -> str:
    return token.replace(" ", _SPACE)


def tokenizer_config(source: GgufFile) -> dict[str, Any]:
    """Return the content of tokenizer_config.json."""
    return {
        **source.special_tokens(),
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.metadata("gemma3.context_length"),
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
