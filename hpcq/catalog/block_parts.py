"""Parts from which the blocks of all families are built: attention, feed-forward layers, experts, state-space layers.

Names, biases and sizes are those of transformers 5.17. A part has its linear layers and a number of other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hpcq.catalog.model_config import ModelConfig
from hpcq.catalog.model_shape import Attention, Block, Experts, Linear, TpSplit

GATED = ("gate_proj", "up_proj", "down_proj")
"""Usual names of a gated feed-forward layer. Two names: it has no gate."""
HEADS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Usual names of the layers of attention."""


def join_parts(parts: Iterable[Block]) -> Block:
    """Return the block that consists of these parts."""
    parts = tuple(parts)
    return Block(
        linears=tuple(linear for part in parts for linear in part.linears),
        other=sum(part.other for part in parts),
        float32=sum(part.float32 for part in parts),
        buffers=sum(part.buffers for part in parts),
        experts=next((part.experts for part in parts if part.experts), None),
        attention=next((part.attention for part in parts if part.attention), None),
        state=sum(part.state for part in parts),
        state_heads=max(part.state_heads for part in parts),
        feed_forward=max(part.feed_forward for part in parts),
        activations=sum(part.activations for part in parts),
    )


def linear(
    name: str,
    in_features: int,
    out_features: int,
    split: TpSplit = "column",
    *,
    bias: bool = False,
    kv: int = 0,
) -> Linear:
    """Return a linear layer."""
    return Linear(
        name=name,
        in_features=in_features,
        out_features=out_features,
        tp_split=split,
        has_bias=bias,
        kv_features=kv,
    )


def vectors(count: int) -> Block:
    """Return parameters that are in no linear layer."""
    return Block(other=count)


def rms_norms(config: ModelConfig, count: int) -> Block:
    """Return norms of the hidden state without biases."""
    return vectors(count * config.hidden)


def layer_norms(config: ModelConfig, count: int) -> Block:
    """Return norms of the hidden state with biases."""
    return vectors(2 * count * config.hidden)


def attention(
    config: ModelConfig,
    *,
    bias: bool = False,
    out_bias: bool | None = None,
    module: str = "self_attn",
    names: Sequence[str] = HEADS,
    kv_heads: int | None = None,
    window: int | None = None,
) -> Block:
    """Return attention with query, key and value layers, or one layer for all three.

    Args:
        config: The configuration.
        bias: Queries, keys and values have biases.
        out_bias: The output has a bias; None: as `bias`.
        module: Name of the attention module.
        names: Names of the four layers, or of two: that of queries, keys and values together, and that of the output.
        kv_heads: Number of key-value heads; None: as configured.
        window: Number of tokens that it attends to; None: all.
    """
    heads, kv_heads, size = config.heads, kv_heads or config.kv_heads, config.head_dim
    hidden, query, key = config.hidden, heads * size, kv_heads * size
    *inputs, output = (f"{module}.{name}" for name in names)
    if len(inputs) == 1:
        linears = [linear(inputs[0], hidden, query + 2 * key, bias=bias, kv=2 * key)]
    else:
        linears = [linear(inputs[0], hidden, query, bias=bias)]
        linears += [linear(name, hidden, key, bias=bias, kv=key) for name in inputs[1:]]
    linears.append(linear(output, query, hidden, "row", bias=bias if out_bias is None else out_bias))
    kept = Attention(heads=heads, kv_heads=kv_heads, key_dim=size, value_dim=size, window=window)
    return Block(linears=tuple(linears), attention=kept)


def with_query_gate(part: Block) -> Block:
    """Return attention whose query layer also computes a gate of the output."""
    query, *others = part.linears
    return replace(part, linears=(replace(query, out_features=2 * query.out_features), *others))


def head_norms(config: ModelConfig) -> Block:
    """Return one norm for all query heads and one for all key heads, as wide as a head."""
    return vectors(2 * config.head_dim)


def full_norms(config: ModelConfig) -> Block:
    """Return norms over all queries and over all keys."""
    return vectors((config.heads + config.kv_heads) * config.head_dim)


def latent_attention(config: ModelConfig, *, has_indexer: bool = False) -> Block:
    """Return multi-head latent attention (MLA), optionally with the indexer of DeepSeek sparse attention."""
    hidden, heads, latent = config.hidden, config.heads, config.size("kv_lora_rank")
    rope, nope = config.size("qk_rope_head_dim"), config.size("qk_nope_head_dim")
    value, bias = config.size("v_head_dim"), config.flag("attention_bias")
    rank, query = config.count("q_lora_rank"), heads * (rope + nope)
    linears = [linear("self_attn.q_proj", hidden, query)]
    if rank:
        linears = [
            linear("self_attn.q_a_proj", hidden, rank, "none", bias=bias),
            linear("self_attn.q_b_proj", rank, query),
        ]
    linears += [
        linear("self_attn.kv_a_proj_with_mqa", hidden, latent + rope, "none", bias=bias),
        linear("self_attn.kv_b_proj", latent, heads * (nope + value)),
        linear("self_attn.o_proj", heads * value, hidden, "row", bias=bias),
    ]
    other, kept = rank + latent, latent + rope
    if has_indexer:
        index_heads, index_dim = config.size("index_n_heads"), config.size("index_head_dim")
        linears += [
            linear("self_attn.indexer.wq_b", rank, index_heads * index_dim, "none"),
            linear("self_attn.indexer.wk", hidden, index_dim, "none"),
            linear("self_attn.indexer.weights_proj", hidden, index_heads, "none"),
        ]
        other, kept = other + 2 * index_dim, kept + index_dim
    cache = Attention(heads=heads, kv_heads=heads, key_dim=rope + nope, value_dim=value, latent=kept)
    return Block(linears=tuple(linears), other=other, attention=cache)


def feed_forward(
    config: ModelConfig,
    *,
    width: int | None = None,
    module: str = "mlp",
    names: Sequence[str] = GATED,
    bias: bool = False,
    is_fused: bool = False,
) -> Block:
    """Return a feed-forward layer: gated if it has three names, or if gate and input are one layer (is_fused)."""
    width = width or config.width
    *inputs, output = (f"{module}.{name}" if module else name for name in names)
    linears = [linear(name, config.hidden, (1 + is_fused) * width, bias=bias) for name in inputs]
    linears.append(linear(output, width, config.hidden, "row", bias=bias))
    return Block(linears=tuple(linears), feed_forward=width, activations=(1 + len(inputs) + is_fused) * width)


def experts(
    config: ModelConfig,
    *,
    width: int | None = None,
    module: str = "mlp.experts",
    router: str = "mlp.gate",
    names: Sequence[str] = GATED,
    bias: bool = False,
    has_correction: bool = False,
) -> Block:
    """Return routed experts and their router.

    Args:
        config: The configuration.
        width: Width of an expert; None: `intermediate_size`.
        module: Name of the list of experts.
        router: Name of the router.
        names: Names of an expert's layers.
        bias: The layers of an expert have biases.
        has_correction: A checkpoint has a correction per expert, in 32 bits.
    """
    count, width = config.size("num_experts"), width or config.width
    one = feed_forward(config, width=width, module=f"{module}.*", names=names, bias=bias)
    return Block(
        linears=(linear(router, config.hidden, count, "none"),),
        float32=count if has_correction else 0,
        experts=Experts(count=count, active=config.size("num_experts_per_tok"), width=width, linears=one.linears),
    )


def shared_expert_gate(config: ModelConfig, name: str = "mlp.shared_expert_gate") -> Block:
    """Return the gate of a shared expert."""
    return Block(linears=(linear(name, config.hidden, 1, "none"),))


def mamba(config: ModelConfig, *, module: str = "mixer", prefix: str = "", has_norms: bool = False) -> Block:
    """Return a Mamba layer.

    Args:
        config: The configuration.
        module: Name of the layer.
        prefix: "mamba_": keys of a hybrid model.
        has_norms: It has norms of time step, B and C (Jamba).
    """
    names = ("d_state", "d_conv", "dt_rank", "proj_bias", "conv_bias") if prefix else ()
    state, kernel, rank, bias, conv_bias = (prefix + name for name in names) if names else (
        "state_size", "conv_kernel", "time_step_rank", "use_bias", "use_conv_bias",
    )  # fmt: skip
    hidden, size, length = config.hidden, config.size(state), config.size(kernel)
    inner = config.size("intermediate_size") if not prefix and config.get("intermediate_size") else None
    inner = inner or config.expanded(f"{prefix}expand")
    steps = math.ceil(hidden / 16) if config.get(rank, "auto") == "auto" else config.size(rank)
    biased = config.flag(bias)
    linears = (
        linear(f"{module}.in_proj", hidden, 2 * inner, bias=biased),
        linear(f"{module}.x_proj", inner, steps + 2 * size, "row"),
        linear(f"{module}.dt_proj", steps, inner, bias=True),
        linear(f"{module}.out_proj", inner, hidden, "row", bias=biased),
    )
    other = inner * (size + 1 + length + config.flag(conv_bias)) + has_norms * (steps + 2 * size)
    return Block(linears=linears, other=other, state=inner * (size + length - 1), state_heads=inner)


@dataclass(frozen=True, kw_only=True)
class Mamba2Keys:
    """Keys of a Mamba-2 layer's sizes.

    Attributes:
        heads: Number of heads.
        head_dim: Width of a head; "auto" or absent: `expand` times the hidden size, divided by the heads.
        groups: Number of groups of B and C.
        state: Width of the state.
        kernel: Length of the convolution.
        expand: Width relative to the hidden size.
        bias: The projections have biases.
        conv_bias: The convolution has a bias.
    """

    heads: str = "mamba_n_heads"
    head_dim: str = "mamba_d_head"
    groups: str = "mamba_n_groups"
    state: str = "mamba_d_state"
    kernel: str = "mamba_d_conv"
    expand: str = "mamba_expand"
    bias: str = "mamba_proj_bias"
    conv_bias: str = "mamba_conv_bias"


def mamba2(
    config: ModelConfig,
    keys: Mamba2Keys = Mamba2Keys(),
    *,
    module: str = "mamba",
    inner: int | None = None,
    has_norm: bool = True,
) -> Block:
    """Return a Mamba-2 layer; `inner`: its width, if that is not heads times their width."""
    hidden, heads, groups = config.hidden, config.size(keys.heads), config.size(keys.groups)
    size, length = config.size(keys.state), config.size(keys.kernel)
    if inner is None:
        stated = config.get(keys.head_dim, "auto")
        inner = config.expanded(keys.expand) if stated == "auto" else heads * config.size(keys.head_dim)
    mixed, biased = inner + 2 * groups * size, config.flag(keys.bias)
    return Block(
        linears=(
            linear(f"{module}.in_proj", hidden, inner + mixed + heads, bias=biased),
            linear(f"{module}.out_proj", inner, hidden, "row", bias=biased),
        ),
        other=3 * heads + mixed * (length + config.flag(keys.conv_bias)) + has_norm * inner,
        state=inner * size + mixed * (length - 1),
        state_heads=heads,
    )


def gated_delta_net(config: ModelConfig, *, is_fused: bool) -> Block:
    """Return the linear attention of Qwen3-Next and Qwen3.5; is_fused: with two input projections instead of four."""
    hidden, values, keys = config.hidden, config.size("linear_num_value_heads"), config.size("linear_num_key_heads")
    key_dim, value_dim = config.size("linear_key_head_dim"), config.size("linear_value_head_dim")
    key, value, length = keys * key_dim, values * value_dim, config.size("linear_conv_kernel_dim")
    sizes = {"in_proj_qkvz": 2 * key + 2 * value, "in_proj_ba": 2 * values}
    if not is_fused:
        sizes = {"in_proj_qkv": 2 * key + value, "in_proj_z": value, "in_proj_b": values, "in_proj_a": values}
    inputs = [linear(f"linear_attn.{name}", hidden, size) for name, size in sizes.items()]
    return Block(
        linears=(*inputs, linear("linear_attn.out_proj", value, hidden, "row")),
        other=2 * values + (2 * key + value) * length + value_dim,
        state=values * key_dim * value_dim + (2 * key + value) * (length - 1),
        state_heads=keys,
    )


def short_convolution(config: ModelConfig) -> Block:
    """Return the convolution layer of LFM2."""
    hidden, length, bias = config.hidden, config.size("conv_L_cache"), config.flag("conv_bias")
    return Block(
        linears=(
            linear("conv.in_proj", hidden, 3 * hidden, bias=bias),
            linear("conv.out_proj", hidden, hidden, "row", bias=bias),
        ),
        other=hidden * (length + bias),
        state=hidden * length,
    )


def recurrent(config: ModelConfig) -> Block:
    """Return the recurrent layer of RecurrentGemma (RG-LRU)."""
    hidden, width, heads = config.hidden, config.size("lru_width", config.hidden), config.heads
    length = config.size("conv1d_width")
    return Block(
        linears=(
            linear("temporal_block.linear_y", hidden, width, bias=True),
            linear("temporal_block.linear_x", hidden, width, bias=True),
            linear("temporal_block.linear_out", width, hidden, "row", bias=True),
        ),
        other=width * (length + 1) + width + 2 * heads * ((width // heads) ** 2 + width // heads),
        state=width * length,
        state_heads=heads,
    )


def time_mixing(config: ModelConfig) -> Block:
    """Return both layers of a RWKV-4 block, without norms."""
    hidden = config.hidden
    inner, width = config.size("attention_hidden_size", hidden), config.size("intermediate_size", 4 * hidden)
    return Block(
        linears=(
            linear("attention.key", hidden, inner),
            linear("attention.value", hidden, inner),
            linear("attention.receptance", hidden, inner),
            linear("attention.output", inner, hidden, "row"),
            linear("feed_forward.key", hidden, width),
            linear("feed_forward.receptance", hidden, hidden),
            linear("feed_forward.value", width, hidden, "row"),
        ),
        other=2 * inner + 5 * hidden,
        state=2 * hidden + 3 * inner,
        feed_forward=width,
        activations=2 * width,
    )
