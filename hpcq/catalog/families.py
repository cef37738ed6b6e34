"""Table of model families (model_type in config.json): their blocks, and what is outside the blocks.

A test compares each row with the model that transformers 5.17 makes (tests/models/test_families.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hpcq.catalog import attention_windows as windows
from hpcq.catalog import early_blocks as early
from hpcq.catalog import expert_blocks as moe
from hpcq.catalog import gemma4_blocks
from hpcq.catalog import hybrid_blocks as hybrid
from hpcq.catalog import plain_blocks as plain
from hpcq.catalog.block_parts import HEADS, experts, full_norms, head_norms, latent_attention, layer_norms
from hpcq.catalog.expert_blocks import DeepSeek, QwenMoe
from hpcq.catalog.model_config import ModelConfig, UnsupportedConfigError
from hpcq.catalog.model_shape import Linear
from hpcq.catalog.plain_blocks import Parts, Plain
from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        parts: Returns the parts of block number i.
        prefix: Name of the list of blocks.
        head: Name of the head, if it is not tied.
        norm: Parameters of the last norm, relative to the hidden size: 1, with a bias 2.
        outside: Returns the number of other parameters outside the blocks, such as learned positions.
        has_head_bias: Returns whether the head has a bias, tied or not.
        linears: Returns linear layers outside the blocks, without the head.
        embedding_size: Key of the width of the embeddings.
        is_unlimited: It has no maximum number of positions.
    """

    parts: Callable[[ModelConfig, int], Parts]
    prefix: str = "model.layers"
    head: str = "lm_head"
    norm: int = 1
    outside: Callable[[ModelConfig], int] = lambda _: 0
    has_head_bias: Callable[[ModelConfig], bool] = lambda _: False
    linears: Callable[[ModelConfig], tuple[Linear, ...]] = lambda _: ()
    embedding_size: str = "hidden_size"
    is_unlimited: bool = False


def _positions(config: ModelConfig, more: int = 0) -> int:
    """Return the parameters of learned positions."""
    return (config.size("max_position_embeddings") + more) * config.hidden


def _latent(config: ModelConfig, _index: int, *, has_indexer: bool = False) -> Parts:
    shared = ("indexer_types", "index_topk_pattern", "index_topk_freq")
    if has_indexer and any(config.get(key) not in (None, 1, ["full"] * config.layers) for key in shared):
        raise UnsupportedConfigError(f"blocks share their indexers ({', '.join(shared)})")
    yield latent_attention(config, has_indexer=has_indexer)


_LLAMA = Plain(mlp_bias="mlp_bias")
_GLM = Plain(out_bias=False, mlp=plain.GATE_UP, is_fused=True)
_GPT2 = Family(parts=early.gpt2, prefix="transformer.h", norm=2, outside=_positions)
_DEEPSEEK_V3 = Family(parts=DeepSeek(mixer=_latent))
_LATENT_DENSE = DeepSeek(mixer=_latent, dense_blocks=lambda config: config.layers)
_OLMOE = Family(parts=Plain(query_norms=full_norms, experts=experts))
_MAMBA = Family(parts=hybrid.mamba_only, prefix="backbone.layers", is_unlimited=True)

FAMILIES: dict[str, Family] = {
    # Llama, and families that differ from it by options
    "llama": Family(parts=_LLAMA),
    "gemma": Family(parts=_LLAMA),
    "granite": Family(parts=_LLAMA),
    "helium": Family(parts=_LLAMA),
    "smollm3": Family(parts=_LLAMA),
    "seed_oss": Family(parts=replace(_LLAMA, out_bias="attention_out_bias")),
    "cwm": Family(parts=replace(_LLAMA, window=windows.all_but_every_fourth)),
    "mistral": Family(parts=Plain(bias=False, window=windows.everywhere)),
    "ministral3": Family(parts=Plain(bias=False, window=windows.everywhere)),
    "ministral": Family(parts=Plain(bias=False, window=windows.listed)),
    "granite_swa": Family(parts=replace(_LLAMA, query_norms=plain.sinks, window=windows.all_but_every_fourth)),
    "qwen2": Family(parts=Plain(bias=True, out_bias=False, window=windows.late_if_used)),
    "qwen3": Family(parts=Plain(query_norms=head_norms, window=windows.late_if_used)),
    "hunyuan_v1_dense": Family(parts=Plain(query_norms=head_norms)),
    "ernie4_5": Family(parts=Plain(bias="use_bias", mlp_bias="use_bias")),
    "exaone4": Family(parts=Plain(bias=False, query_norms=head_norms, window=windows.every("sliding_window_pattern"))),
    "olmo": Family(parts=Plain(norms=0), norm=0),
    "olmo2": Family(parts=Plain(query_norms=full_norms)),
    "olmo3": Family(parts=Plain(query_norms=full_norms, window=windows.every(4))),
    "bitnet": Family(parts=Plain(query_norms=plain.bitnet_norms)),
    "cohere": Family(parts=Plain(query_norms=plain.cohere_norms, norms=1)),
    "cohere2": Family(parts=Plain(window=windows.every("sliding_window_pattern", 4), norms=1)),
    "gemma2": Family(parts=Plain(window=windows.every(2), norms=4)),
    "vaultgemma": Family(parts=Plain(window=windows.every(2))),
    "gemma3_text": Family(
        parts=Plain(query_norms=head_norms, window=windows.every("sliding_window_pattern", 6), norms=4)
    ),
    "gemma4_text": Family(
        parts=gemma4_blocks.gemma4,
        outside=gemma4_blocks.inputs_of_blocks,
        linears=gemma4_blocks.input_projection,
    ),
    "glm": Family(parts=_GLM),
    "glm4": Family(parts=replace(_GLM, norms=4)),
    "phi3": Family(
        parts=Plain(
            bias=False, heads=("qkv_proj", "o_proj"), mlp=plain.GATE_UP, is_fused=True, window=windows.everywhere
        )
    ),
    "stablelm": Family(parts=plain.stablelm, norm=2),
    # Feed-forward layers without a gate
    "arcee": Family(parts=Plain(mlp=plain.UNGATED, mlp_bias="mlp_bias")),
    "apertus": Family(parts=Plain(query_norms=plain.apertus_norms, mlp=plain.UNGATED)),
    "nanochat": Family(parts=Plain(mlp=("fc1", "fc2"), norms=0), norm=0),
    "nemotron": Family(parts=Plain(mlp=plain.UNGATED, mlp_bias="mlp_bias", kind=layer_norms), norm=2),
    "jais2": Family(
        parts=Plain(mlp=plain.UNGATED, mlp_bias="mlp_bias", kind=layer_norms),
        norm=2,
    ),
    "starcoder2": Family(
        parts=Plain(
            bias="use_bias",
            mlp=("c_fc", "c_proj"),
            mlp_bias="use_bias",
            window=windows.everywhere,
            kind=layer_norms,
        ),
        norm=2,
    ),
    "phi": Family(
        parts=Plain(
            bias=True,
            heads=(*HEADS[:3], "dense"),
            query_norms=plain.biased_norms,
            mlp=("fc1", "fc2"),
            mlp_bias=True,
            norms=1,
            kind=layer_norms,
        ),
        norm=2,
        has_head_bias=lambda _: True,
    ),
    # Decoders before Llama
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": replace(_GPT2, parts=early.gpt_neo),
    "gptj": Family(parts=early.gptj, prefix="transformer.h", norm=2, has_head_bias=lambda _: True),
    "codegen": Family(parts=early.codegen, prefix="transformer.h", norm=2, has_head_bias=lambda _: True),
    "gpt_neox": Family(parts=early.gpt_neox, prefix="gpt_neox.layers", norm=2),
    "persimmon": Family(parts=early.persimmon, norm=2),
    "opt": Family(
        parts=early.opt,
        prefix="model.decoder.layers",
        norm=0,
        outside=early.opt_outside,
        linears=early.opt_projections,
        embedding_size="word_embed_proj_dim",
    ),
    "biogpt": Family(
        parts=early.opt,
        prefix="biogpt.layers",
        head="output_projection",
        norm=2,
        outside=partial(_positions, more=2),
    ),
    "xglm": Family(parts=early.opt, norm=2),
    "falcon": Family(parts=early.falcon, prefix="transformer.h", norm=2),
    "bloom": Family(parts=early.bloom, prefix="transformer.h", norm=4, is_unlimited=True),  # also before the blocks
    "mpt": Family(parts=early.mpt, prefix="transformer.blocks"),
    "qwen": Family(parts=early.qwen),
    # Mixtures of experts
    "mixtral": Family(parts=Plain(bias=False, window=windows.everywhere, experts=experts)),
    "phimoe": Family(
        parts=Plain(experts=partial(experts, router="mlp.router"), kind=layer_norms),
        norm=2,
        has_head_bias=lambda config: config.flag("lm_head_bias"),
    ),
    "olmoe": _OLMOE,
    "flex_olmo": _OLMOE,
    "minimax_m2": Family(
        parts=Plain(bias=False, query_norms=full_norms, experts=partial(experts, has_correction=True))
    ),
    "granitemoe": Family(parts=moe.granite_moe),
    "granitemoeshared": Family(parts=moe.granite_moe),
    "granitemoe_swa": Family(parts=moe.granite_moe_window),
    "mellum": Family(parts=moe.mellum),
    "gpt_oss": Family(parts=moe.gpt_oss),
    "llama4_text": Family(parts=moe.llama4),
    "ernie4_5_moe": Family(parts=moe.ernie_moe),
    "afmoe": Family(parts=moe.afmoe),
    "hunyuan_v1_moe": Family(parts=moe.hunyuan_moe),
    "qwen2_moe": Family(
        parts=QwenMoe(mixer=Plain(bias="qkv_bias", out_bias=False, window=windows.early_if_used).mixer)
    ),
    "qwen3_moe": Family(
        parts=QwenMoe(mixer=Plain(query_norms=head_norms, window=windows.everywhere_if_used).mixer, has_shared=False)
    ),
    "dots1": Family(parts=DeepSeek(mixer=Plain(query_norms=head_norms, window=windows.late).mixer)),
    "exaone_moe": Family(
        parts=DeepSeek(
            mixer=Plain(bias=False, query_norms=head_norms, window=windows.every("sliding_window_pattern")).mixer
        )
    ),
    "hy_v3": Family(parts=DeepSeek(mixer=Plain(query_norms=head_norms).mixer, dense_blocks=lambda _: 1)),
    "glm4_moe": Family(parts=DeepSeek(mixer=Plain(out_bias=False, query_norms=plain.glm_norms).mixer)),
    "solar_open": Family(parts=DeepSeek(mixer=Plain(out_bias=False).mixer, dense_blocks=lambda _: 0)),
    # Latent attention
    "deepseek_v2": Family(parts=DeepSeek(mixer=_latent, has_correction=False)),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": Family(parts=DeepSeek(mixer=partial(_latent, has_indexer=True))),
    "glm4_moe_lite": _DEEPSEEK_V3,
    "glm_moe_dsa": Family(parts=DeepSeek(mixer=partial(_latent, has_indexer=True))),
    "minicpm3": Family(parts=_LATENT_DENSE),
    "youtu": Family(parts=_LATENT_DENSE),
    # Linear attention and state spaces
    "qwen3_next": Family(parts=QwenMoe(mixer=partial(hybrid.qwen_hybrid, is_fused=True))),
    "qwen3_5_moe_text": Family(parts=QwenMoe(mixer=hybrid.qwen_hybrid)),
    "qwen3_5_text": Family(parts=hybrid.qwen_hybrid_dense),
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "mamba2": replace(_MAMBA, parts=hybrid.mamba2_only),
    "bamba": Family(parts=hybrid.bamba),
    "falcon_h1": Family(parts=hybrid.falcon_h1),
    "jamba": Family(parts=hybrid.jamba),
    "nemotron_h": Family(parts=hybrid.nemotron_h),
    "granitemoehybrid": Family(parts=hybrid.granite_hybrid),
    "lfm2": Family(parts=hybrid.lfm2),
    "lfm2_moe": Family(parts=hybrid.lfm2),
    "recurrent_gemma": Family(parts=hybrid.recurrent_gemma, is_unlimited=True),
    "rwkv": Family(parts=hybrid.rwkv, prefix="rwkv.blocks", head="head", norm=2, is_unlimited=True),
}
"""Families by model_type."""

TEXT_PARTS = {
    "llama4": "llama4_text",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""Multimodal families, with the family of the part for text if its text_config has no model_type."""
