"""Tiny models of many families with random weights and a real tokenizer, for tests of quantization.

The weights make every log-likelihood depend on all layers: transformers' own initialisation (0.02) gives models whose
logits hardly depend on the context, so that a lost layer would not be noticed. A family's name always gives the same
bytes. The tokenizer is SmolLM2's, with its first tokens only: the logits of all 49152 tokens would take most of the
time of such small models.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY = 4096
SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
TOKENIZER_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 48,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "head_dim": 16,
}
_GEMMA: dict[str, Any] = {
    "sliding_window": 32,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "tie_word_embeddings": True,
}

_ROPE: dict[str, Any] = {"rope_theta": 10000.0}
_LLAMA3: dict[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to make a tiny model of a family.

    Attributes:
        model_type: Name of the family in transformers.
        sizes: Settings of its configuration.
    """

    model_type: str
    sizes: Mapping[str, Any] = field(default_factory=dict)


def _family(model_type: str, /, base: Mapping[str, Any] = _SIZES, **sizes: Any) -> Family:
    return Family(model_type=model_type, sizes={**base, **sizes})


FAMILIES: dict[str, Family] = {
    # Decoders with separate projections
    "llama": _family("llama"),
    "qwen2": _family("qwen2", tie_word_embeddings=True),
    "qwen3": _family("qwen3", head_dim=64),
    "mistral": _family("mistral", sliding_window=32),
    "olmo2": _family("olmo2"),
    "gemma2": _family("gemma2", **_GEMMA),
    "gemma3": _family("gemma3_text", **_GEMMA, sliding_window_pattern=2),
    "gemma": _family("gemma", head_dim=32, tie_word_embeddings=True),
    "nemotron": _family("nemotron"),
    "smollm3": _family("smollm3", no_rope_layer_interval=2),
    "phi": _family("phi"),
    "cohere2": _family("cohere2", sliding_window=32, logit_scale=0.5, tie_word_embeddings=True),
    "olmo3": _family("olmo3", sliding_window=32),
    "exaone4": _family("exaone4", sliding_window=32, head_dim=32),
    "cohere": _family("cohere", logit_scale=0.5, tie_word_embeddings=True, use_qk_norm=True),
    "granite": _family(
        "granite", embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.1
    ),
    "glm4": _family("glm4", head_dim=32, partial_rotary_factor=0.5, attention_bias=True),
    "stablelm": _family("stablelm"),
    "starcoder2": _family("starcoder2"),
    # Fused projections, other names
    "phi3": _family("phi3"),
    "gpt2": _family("gpt2", {}, vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=4, n_positions=1024),
    "gpt_neox": _family("gpt_neox"),
    "opt": _family(
        "opt",
        {},
        vocab_size=VOCABULARY,
        hidden_size=128,
        ffn_dim=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        word_embed_proj_dim=128,
    ),
    "falcon": _family(
        "falcon",
        {},
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=True,
        max_position_embeddings=1024,
    ),
    "bloom": _family("bloom", {}, vocab_size=VOCABULARY, hidden_size=128, n_layer=2, n_head=4),
    # Mixtures of experts
    "mixtral": _family("mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "qwen2_moe": _family("qwen2_moe", **_EXPERTS, num_experts=4, shared_expert_intermediate_size=128),
    "qwen3_moe": _family("qwen3_moe", **_EXPERTS, num_experts=4, head_dim=32),
    "olmoe": _family("olmoe", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _family("granitemoe", num_local_experts=4, num_experts_per_tok=2),
    "glm4_moe": _family(
        "glm4_moe",
        **_EXPERTS,
        head_dim=32,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "gpt_oss": _family("gpt_oss", sliding_window=32, head_dim=32, num_local_experts=4, num_experts_per_tok=2),
    "llama4": _family(
        "llama4_text", attention_chunk_size=32, head_dim=32, num_local_experts=4, intermediate_size_mlp=256
    ),
    "deepseek_v2": _family("deepseek_v2", **{**_EXPERTS, **_LATENT}),
    "deepseek_v3": _family("deepseek_v3", **{**_EXPERTS, **_LATENT}),
    "qwen3_next": _family(
        "qwen3_next",
        **_EXPERTS,
        num_experts=4,
        num_hidden_layers=4,
        head_dim=32,
        shared_expert_intermediate_size=64,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
    ),
    "ernie4_5_moe": _family(
        "ernie4_5_moe",
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=64,
        moe_layer_start_index=1,
        moe_num_shared_experts=1,
        head_dim=32,
    ),
    "granitemoehybrid": _family(
        "granitemoehybrid",
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_n_groups=1,
        mamba_d_state=16,
    ),
    # States
    "mamba": _family("mamba", {}, vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2),
    "mamba2": _family(
        "mamba2",
        {},
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        head_dim=32,
        num_heads=8,
        n_groups=1,
        state_size=16,
    ),
    "bamba": _family(
        "bamba", attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=32, mamba_n_groups=1, mamba_d_state=16
    ),
    "falcon_h1": _family(
        "falcon_h1",
        head_dim=32,
        mamba_d_ssm=256,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_n_groups=1,
        mamba_d_state=16,
    ),
    "nemotron_h": _family(
        "nemotron_h",
        head_dim=32,
        hybrid_override_pattern="M*-",
        num_hidden_layers=3,
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=1,
        ssm_state_size=16,
    ),
    "zamba2": _family(
        "zamba2",
        num_key_value_heads=4,
        n_mamba_heads=8,
        mamba_d_state=16,
        mamba_ngroups=1,
        num_mem_blocks=1,
        attention_head_dim=64,
        num_hidden_layers=3,
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_headdim=32,
        use_mamba_kernels=False,
    ),
    "rwkv": _family("rwkv", {}, vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, context_length=1024),
    "jamba": _family(
        "jamba",
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=16,
        use_mamba_kernels=False,
    ),
    # Local windows, ALiBi, rotary embeddings, vocabularies
    "gpt_neo": _family(
        "gpt_neo",
        {},
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=1024,
        attention_types=[[["global", "local"], 1]],
        window_size=32,
        intermediate_size=256,
    ),
    "gptj": _family(
        "gptj", {}, vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=4, rotary_dim=16, n_positions=1024
    ),
    "mpt": _family(
        "mpt", {}, vocab_size=VOCABULARY, d_model=128, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=2048
    ),
    "falcon_alibi": _family(
        "falcon",
        {},
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        multi_query=False,
        alibi=True,
        max_position_embeddings=1024,
    ),
    "phi3_window": _family("phi3", sliding_window=32),
    "qwen2_window": _family("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=1),
    "llama_tied": _family("llama", tie_word_embeddings=True),
    "rope_llama3": _family("llama", rope_parameters={**_ROPE, "rope_type": "llama3", "factor": 8.0, **_LLAMA3}),
    "rope_dynamic": _family("llama", rope_parameters={**_ROPE, "rope_type": "dynamic", "factor": 4.0}),
    "rope_yarn": _family(
        "llama",
        rope_parameters={**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "rope_linear": _family("llama", rope_parameters={**_ROPE, "rope_type": "linear", "factor": 4.0}),
    "rope_longrope": _family(
        "phi3",
        original_max_position_embeddings=128,
        rope_parameters={
            **_ROPE,
            "rope_type": "longrope",
            "short_factor": [1.0] * 16,
            "long_factor": [4.0] * 16,
            "original_max_position_embeddings": 128,
        },
    ),
    "vocab_padded": _family("llama", vocab_size=VOCABULARY + 128),
    "vocab_odd": _family("llama", vocab_size=VOCABULARY + 3, tie_word_embeddings=True),
    # A text model inside a larger one
    "gemma3_vision": Family(
        model_type="gemma3",
        sizes={
            "text_config": {**_SIZES, **_GEMMA, "num_attention_heads": 4},
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
    ),
}


def write_family(name: str, folder: str | Path, tokenizer: str | Path) -> Path:
    """Write the checkpoint of a family in bfloat16, as its publisher would.

    Args:
        name: One of `FAMILIES`.
        folder: Where to write; it must not exist.
        tokenizer: Folder with SmolLM2's tokenizer.
    """
    return write_checkpoint(FAMILIES[name], Path(folder), Path(tokenizer), seed_text=name)


def write_checkpoint(family: Family, folder: Path, tokenizer: Path, *, seed_text: str) -> Path:
    """Write a checkpoint in bfloat16; the same `seed_text` gives the same weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(1)
    config = AutoConfig.for_model(family.model_type, **{**SPECIAL_TOKENS, **family.sizes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed=zlib.crc32(seed_text.encode()))
    model.eval()
    for parameter in model.parameters():  # not buffers: publishers store the routers' corrections in 32 bits
        parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(**SPECIAL_TOKENS)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer)
    return folder


def randomize(model: Any, *, seed: int) -> None:
    """Draw weights of about unit gain, so that every layer contributes to the logits."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            is_matrix = tensor.ndim >= 2 and ("weight" in last or last.endswith("_proj"))
            if is_matrix and "conv" not in name:
                tensor.normal_(0.0, 1.2 / math.sqrt(tensor.shape[-1]), generator=generator)
            elif last in ("weight", "bias"):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)


def write_tokenizer(folder: Path, source: Path) -> None:
    """Write SmolLM2's tokenizer, cut to the tokens below VOCABULARY and the merges that make them."""
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copyfile(source / "tokenizer_config.json", folder / "tokenizer_config.json")
