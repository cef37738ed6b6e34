"""Blocks of the families before Llama: GPT-2, OPT, Falcon, BLOOM and others."""

from __future__ import annotations

from hpcq.catalog.block_parts import attention, feed_forward, layer_norms, linear, rms_norms
from hpcq.catalog.model_config import ModelConfig
from hpcq.catalog.model_shape import Linear
from hpcq.catalog.plain_blocks import FOUR_TIMES, FUSED_HEADS, OUT_PROJ, UNGATED, Parts, biased_norms


def gpt2(config: ModelConfig, _index: int) -> Parts:
    """GPT-2, whose layers transformers keeps transposed (Conv1D), and StarCoder."""
    kv_heads = 1 if config.flag("multi_query") else config.heads
    yield attention(config, bias=True, module="attn", names=("c_attn", "c_proj"), kv_heads=kv_heads)
    yield feed_forward(config, width=_four_times(config), names=("c_fc", "c_proj"), bias=True)
    yield layer_norms(config, 2)


def gpt_neo(config: ModelConfig, index: int) -> Parts:
    """GPT-Neo: a window in every second block."""
    kinds = [kind for pattern, count in config.get("attention_types") or () for _ in range(count) for kind in pattern]
    limit = config.size("window_size", 256) if kinds[index : index + 1] == ["local"] else None
    yield attention(config, out_bias=True, module="attn.attention", names=OUT_PROJ, window=limit)
    yield feed_forward(config, width=_four_times(config), names=("c_fc", "c_proj"), bias=True)
    yield layer_norms(config, 2)


def gptj(config: ModelConfig, _index: int) -> Parts:
    """GPT-J."""
    yield from _gptj(config, OUT_PROJ)


def codegen(config: ModelConfig, _index: int) -> Parts:
    """CodeGen."""
    yield from _gptj(config, ("qkv_proj", "out_proj"))


def _gptj(config: ModelConfig, names: tuple[str, ...]) -> Parts:
    yield attention(config, module="attn", names=names)
    yield feed_forward(config, width=_four_times(config), names=("fc_in", "fc_out"), bias=True)
    yield layer_norms(config, 1)


def _four_times(config: ModelConfig) -> int:
    return config.size("intermediate_size", 4 * config.hidden)


def gpt_neox(config: ModelConfig, _index: int) -> Parts:
    """GPT-NeoX and Pythia."""
    bias, heads = config.flag("attention_bias"), config.heads
    yield attention(config, bias=bias, module="attention", names=FUSED_HEADS, kv_heads=heads)
    yield feed_forward(config, names=FOUR_TIMES, bias=True)
    yield layer_norms(config, 2)


def persimmon(config: ModelConfig, _index: int) -> Parts:
    """Persimmon."""
    yield attention(config, bias=True, names=FUSED_HEADS, kv_heads=config.heads)
    yield biased_norms(config)
    yield feed_forward(config, names=FOUR_TIMES, bias=True)
    yield layer_norms(config, 2)


def opt(config: ModelConfig, _index: int) -> Parts:
    """OPT, BioGPT and XGLM."""
    bias = config.get("enable_bias", True)
    yield attention(config, bias=bias, names=OUT_PROJ, kv_heads=config.heads)
    yield feed_forward(config, module="", names=("fc1", "fc2"), bias=bias)
    if config.get("layer_norm_elementwise_affine", True):
        yield layer_norms(config, 2)


def opt_projections(config: ModelConfig) -> tuple[Linear, ...]:
    """Return the layers between OPT's embeddings and blocks, which OPT-350M has."""
    hidden, size = config.hidden, config.size("word_embed_proj_dim", config.hidden)
    if size == hidden:
        return ()
    return (
        linear("model.decoder.project_out", hidden, size, "none"),
        linear("model.decoder.project_in", size, hidden, "none"),
    )


def opt_outside(config: ModelConfig) -> int:
    """Return the parameters of OPT's positions and last norm."""
    has_norm = config.get("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm")
    is_affine = config.get("layer_norm_elementwise_affine", True)
    return (config.size("max_position_embeddings") + 2 + 2 * bool(has_norm and is_affine)) * config.hidden


def falcon(config: ModelConfig, _index: int) -> Parts:
    """Falcon: one key-value head, groups of them, or as many as heads."""
    is_new, bias, heads = config.flag("new_decoder_architecture"), config.flag("bias"), config.heads
    kv_heads = config.kv_heads if is_new else (1 if config.flag("multi_query") else heads)
    yield attention(config, bias=bias, module="self_attention", names=FUSED_HEADS, kv_heads=kv_heads)
    yield feed_forward(config, width=_four_times(config), names=FOUR_TIMES, bias=bias)
    norms = config.size("num_ln_in_parallel_attn", 2) if is_new else (1 if config.flag("parallel_attn") else 2)
    yield layer_norms(config, norms)


def bloom(config: ModelConfig, _index: int) -> Parts:
    """BLOOM."""
    yield attention(config, bias=True, module="self_attention", names=FUSED_HEADS, kv_heads=config.heads)
    yield feed_forward(config, width=4 * config.hidden, names=FOUR_TIMES, bias=True)
    yield layer_norms(config, 2)


def mpt(config: ModelConfig, _index: int) -> Parts:
    """MPT, whose feed-forward layers have four times the width in transformers, also if expansion_ratio differs."""
    yield attention(config, module="attn", names=("Wqkv", "out_proj"), kv_heads=config.heads)
    yield feed_forward(config, width=4 * config.hidden, module="ffn", names=UNGATED)
    yield rms_norms(config, 2)


def qwen(config: ModelConfig, _index: int) -> Parts:
    """Qwen 1, whose code is in its repository. intermediate_size is that of both halves of the gated layer together."""
    yield attention(config, bias=True, out_bias=False, kv_heads=config.heads)
    yield feed_forward(config, width=config.width // 2)
    yield rms_norms(config, 2)
