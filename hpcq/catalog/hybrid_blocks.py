"""Blocks of hybrid and state-space families: linear attention, Mamba, convolutions, recurrent layers."""

from __future__ import annotations

from hpcq.catalog.attention_windows import layer_type
from hpcq.catalog.block_parts import (
    Mamba2Keys,
    attention,
    experts,
    feed_forward,
    gated_delta_net,
    head_norms,
    layer_norms,
    mamba,
    mamba2,
    recurrent,
    rms_norms,
    short_convolution,
    time_mixing,
    with_query_gate,
)
from hpcq.catalog.expert_blocks import granite_experts
from hpcq.catalog.model_config import ModelConfig, UnsupportedConfigError
from hpcq.catalog.model_shape import Block
from hpcq.catalog.plain_blocks import OUT_PROJ, UNGATED, Parts

_MAMBA2 = Mamba2Keys(
    heads="num_heads",
    head_dim="head_dim",
    groups="n_groups",
    state="state_size",
    kernel="conv_kernel",
    expand="expand",
    bias="use_bias",
    conv_bias="use_conv_bias",
)


def granite_hybrid(config: ModelConfig, index: int) -> Parts:
    """GraniteMoE's hybrid with Mamba-2 layers, also without experts."""
    if layer_type(config, index, "linear_attention") == "linear_attention":
        yield mamba2(config)
    else:
        yield attention(config, bias=config.flag("attention_bias"))
    yield from granite_experts(config)


def qwen_hybrid(config: ModelConfig, index: int, *, is_fused: bool = False) -> Parts:
    """Mixer of Qwen3-Next (is_fused) and Qwen3.5: linear attention, and in one of four blocks attention with a gate."""
    step = config.size("full_attention_interval", 4)
    kind = layer_type(config, index, "linear_attention" if (index + 1) % step else "full_attention")
    if kind == "linear_attention":
        yield gated_delta_net(config, is_fused=is_fused)
        return
    yield with_query_gate(attention(config, bias=config.flag("attention_bias")))
    yield head_norms(config)


def qwen_hybrid_dense(config: ModelConfig, index: int) -> Parts:
    """Qwen3.5 without experts."""
    yield from qwen_hybrid(config, index)
    yield feed_forward(config)
    yield rms_norms(config, 2)


def mamba_only(config: ModelConfig, _index: int) -> Parts:
    """Mamba and Falcon-Mamba."""
    yield mamba(config)
    yield rms_norms(config, 1)


def mamba2_only(config: ModelConfig, _index: int) -> Parts:
    """Mamba-2."""
    yield mamba2(config, _MAMBA2, module="mixer", inner=config.expanded("expand"))
    yield rms_norms(config, 1)


def bamba(config: ModelConfig, index: int) -> Parts:
    """Bamba: attention in a few blocks, Mamba-2 in the others."""
    is_attention = index in (config.get("attn_layer_indices") or ())
    yield attention(config, bias=config.flag("attention_bias")) if is_attention else mamba2(config)
    yield feed_forward(config, module="feed_forward", bias=config.flag("mlp_bias"))
    yield rms_norms(config, 2)


def falcon_h1(config: ModelConfig, _index: int) -> Parts:
    """Falcon-H1: attention and Mamba-2 side by side in every block."""
    yield attention(config, bias=config.flag("attention_bias"))
    yield mamba2(config, inner=config.count("mamba_d_ssm") or None, has_norm=config.flag("mamba_rms_norm"))
    yield feed_forward(config, module="feed_forward", bias=config.flag("mlp_bias"))
    yield rms_norms(config, 2)


def jamba(config: ModelConfig, index: int) -> Parts:
    """Jamba: attention in one of several blocks, Mamba in the others; experts in some blocks."""
    is_attention = index % config.size("attn_layer_period") == config.count("attn_layer_offset")
    yield attention(config) if is_attention else mamba(config, module="mamba", prefix="mamba_", has_norms=True)
    yield rms_norms(config, 2)
    is_expert = index % config.size("expert_layer_period") == config.count("expert_layer_offset")
    if is_expert and config.size("num_experts") > 1:
        yield experts(config, module="feed_forward.experts", router="feed_forward.router")
    else:
        yield feed_forward(config, module="feed_forward")


def nemotron_h(config: ModelConfig, index: int) -> Parts:
    """Nemotron-H: every block is a Mamba-2 layer, attention, a feed-forward layer, or experts."""
    letters = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
    pattern = config.get("hybrid_override_pattern")
    default = letters.get(pattern[index], "") if isinstance(pattern, str) and index < len(pattern) else ""
    yield rms_norms(config, 1)
    match layer_type(config, index, default):
        case "linear_attention":
            yield _nemotron_mamba(config)
        case "full_attention":
            yield attention(config, bias=config.flag("attention_bias"), module="mixer")
        case "mlp":
            yield feed_forward(config, module="mixer", names=UNGATED, bias=config.flag("mlp_bias"))
        case "moe":
            yield from _nemotron_experts(config)
        case kind:
            raise UnsupportedConfigError(f"block {index} is of an unknown kind ({kind or 'no layers_block_type'})")


def _nemotron_mamba(config: ModelConfig) -> Block:
    # Keys of older configurations come first, as in transformers.
    old = (("groups", "mamba_n_groups"), ("kernel", "mamba_d_conv"), ("conv_bias", "mamba_conv_bias"))
    new = {"groups": "n_groups", "kernel": "conv_kernel", "conv_bias": "use_conv_bias"}
    names = new | {field: key for field, key in old if config.get(key) is not None}
    keys = Mamba2Keys(
        heads="mamba_num_heads", head_dim="mamba_head_dim", state="ssm_state_size", bias="use_bias", **names
    )
    return mamba2(config, keys, module="mixer")


def _nemotron_experts(config: ModelConfig) -> Parts:
    if config.get("moe_latent_size"):
        raise UnsupportedConfigError("its experts work on a latent width (moe_latent_size)")
    width, shared = config.size("moe_intermediate_size"), config.size("moe_shared_expert_intermediate_size")
    yield experts(config, width=width, module="mixer.experts", router="mixer.gate", names=UNGATED, has_correction=True)
    bias = config.flag("mlp_bias")
    yield feed_forward(config, width=shared, module="mixer.shared_experts", names=UNGATED, bias=bias)


def lfm2(config: ModelConfig, index: int) -> Parts:
    """LFM2: short convolutions, attention in a few blocks; with or without experts."""
    attending = config.get("full_attn_idxs")
    default = "linear_attention" if isinstance(attending, list) and index not in attending else "full_attention"
    if layer_type(config, index, default) == "full_attention":
        yield attention(config, names=OUT_PROJ)
        yield head_norms(config)
    else:
        yield short_convolution(config)
    yield rms_norms(config, 2)
    if not config.count("num_experts") or index < config.count("num_dense_layers"):
        yield feed_forward(config, width=_lfm2_width(config), module="feed_forward", names=("w1", "w3", "w2"))
        return
    yield experts(
        config,
        width=config.size("moe_intermediate_size"),
        module="feed_forward.experts",
        router="feed_forward.gate",
        has_correction=config.flag("use_expert_bias"),
    )


def _lfm2_width(config: ModelConfig) -> int:
    # The key of older configurations comes first, as in transformers.
    width = config.size("block_ff_dim", config.width)
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    factor, step = config.get("block_ffn_dim_multiplier"), config.size("block_multiple_of", 1)
    return width if factor is None else -(-int(factor * width) // step) * step


def recurrent_gemma(config: ModelConfig, index: int) -> Parts:
    """RecurrentGemma: recurrent layers, and in one of three blocks attention with a window."""
    kinds = config.get("layer_types") or ("recurrent", "recurrent", "attention")
    if config.head_dim * config.heads != config.hidden:
        raise UnsupportedConfigError("its heads together are not as wide as its hidden state")
    if kinds[index % len(kinds)] == "attention":
        limit, bias = config.size("attention_window_size"), config.flag("attention_bias")
        yield attention(config, bias=bias, out_bias=True, module="temporal_block", window=limit)
    else:
        yield recurrent(config)
    yield feed_forward(config, width=config.width // 2, module="mlp_block", bias=True)
    yield rms_norms(config, 2)


def rwkv(config: ModelConfig, index: int) -> Parts:
    """RWKV-4; the first block has one more norm."""
    yield time_mixing(config)
    yield layer_norms(config, 3 if index == 0 else 2)
