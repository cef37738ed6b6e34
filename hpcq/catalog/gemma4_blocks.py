"""Blocks of Gemma-4: wide heads where attention is full, shared key-value caches, inputs of every block, experts."""

from __future__ import annotations

from collections.abc import Iterable

from hpcq.catalog.attention_windows import layer_type
from hpcq.catalog.block_parts import experts, feed_forward, linear, rms_norms, vectors
from hpcq.catalog.model_config import ModelConfig, UnsupportedConfigError
from hpcq.catalog.model_shape import Attention, Block, Linear

_FULL = "full_attention"


def gemma4(config: ModelConfig, index: int) -> Iterable[Block]:
    """Yield the parts of block `index`."""
    shares = index >= config.layers - config.count("num_kv_shared_layers")
    yield _attention(config, index, shares=shares)
    yield rms_norms(config, 4)
    yield Block(buffers=1)  # layer_scalar
    is_wide = shares and config.flag("use_double_wide_mlp")
    yield feed_forward(config, width=config.width * (2 if is_wide else 1))
    size = config.count("hidden_size_per_layer_input")
    if size:
        gate = linear("per_layer_input_gate", config.hidden, size, "none")
        yield Block(linears=(gate, linear("per_layer_projection", size, config.hidden, "none")))
        yield rms_norms(config, 1)
    if config.flag("enable_moe_block"):
        yield experts(config, width=config.size("moe_intermediate_size"), module="experts", router="router.proj")
        yield vectors(4 * config.hidden + config.size("num_experts"))


def inputs_of_blocks(config: ModelConfig) -> int:
    """Return the parameters of the embeddings that every block gets, and of their norm."""
    size = config.count("hidden_size_per_layer_input")
    return size * (config.size("vocab_size_per_layer_input") * config.layers + 1) if size else 0


def input_projection(config: ModelConfig) -> tuple[Linear, ...]:
    """Return the layer that computes the inputs of all blocks."""
    size = config.count("hidden_size_per_layer_input")
    name = "model.per_layer_model_projection"
    return (linear(name, config.hidden, config.layers * size, "none"),) if size else ()


def _attention(config: ModelConfig, index: int, *, shares: bool) -> Block:
    """Return attention; blocks that share a cache have no keys and values of their own."""
    is_full = _kind(config, index) == _FULL
    has_no_values, (heads, size) = is_full and config.flag("attention_k_eq_v"), _heads(config, index, is_full=is_full)
    hidden, query, key, bias = config.hidden, config.heads * size, heads * size, config.flag("attention_bias")
    names = () if shares else ("k_proj",) if has_no_values else ("k_proj", "v_proj")
    linears = [
        linear("self_attn.q_proj", hidden, query, bias=bias),
        *(linear(f"self_attn.{name}", hidden, key, bias=bias, kv=key) for name in names),
        linear("self_attn.o_proj", query, hidden, "row", bias=bias),
    ]
    kept = Attention(
        heads=config.heads,
        kv_heads=heads,
        key_dim=size,
        value_dim=size,
        window=None if is_full else config.size("sliding_window"),
        is_shared=shares,
    )
    return Block(linears=tuple(linears), other=size * (1 if shares else 2), attention=kept)


def _kind(config: ModelConfig, index: int) -> str:
    """Return the kind of block `index`; the last is always full."""
    if index == config.layers - 1:
        return _FULL
    return layer_type(config, index, "sliding_attention" if (index + 1) % 6 else _FULL)


def _heads(config: ModelConfig, index: int, *, is_full: bool) -> tuple[int, int]:
    """Return the number of key-value heads of block `index`, and their width."""
    heads, size = config.kv_heads, config.head_dim
    stated = config.get("per_layer_config")
    if isinstance(stated, dict):
        own = stated.get(str(index), stated.get(index)) or {}
        unknown = set(own) - {"head_dim", "num_key_value_heads"}
        if unknown:
            raise UnsupportedConfigError(f"per_layer_config in its config.json has {min(unknown)}")
        return int(own.get("num_key_value_heads", heads)), int(own.get("head_dim", size))
    if not is_full:
        return heads, size
    if config.flag("attention_k_eq_v"):
        heads = config.size("num_global_key_value_heads", heads)
    return heads, config.size("global_head_dim", 512)
