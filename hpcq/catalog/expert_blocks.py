"""Blocks of families with experts: Qwen, DeepSeek, Llama-4, gpt-oss, Granite and others."""

from __future__ import annotations

from collections.abc import Callable

from hpcq.catalog.attention_windows import all_but_every_fourth, every, window
from hpcq.catalog.block_parts import (
    attention,
    experts,
    feed_forward,
    head_norms,
    linear,
    rms_norms,
    shared_expert_gate,
    vectors,
)
from hpcq.catalog.model_config import ModelConfig
from hpcq.catalog.model_shape import Block
from hpcq.catalog.plain_blocks import Parts, sinks
from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class QwenMoe:
    """Qwen's families with experts in some or all blocks, after any mixer.

    Attributes:
        mixer: Returns attention, or what stands in its place.
        has_shared: There is a shared expert with a gate.
    """

    mixer: Callable[[ModelConfig, int], Parts]
    has_shared: bool = True

    def __call__(self, config: ModelConfig, index: int) -> Parts:
        """Yield the parts of block `index`."""
        yield from self.mixer(config, index)
        yield rms_norms(config, 2)
        dense, step = config.get("mlp_only_layers") or (), config.size("decoder_sparse_step", 1)
        if index in dense or (index + 1) % step:
            yield feed_forward(config)
            return
        yield experts(config, width=config.size("moe_intermediate_size"))
        if self.has_shared:
            width = config.size("shared_expert_intermediate_size")
            yield feed_forward(config, width=width, module="mlp.shared_expert")
            yield shared_expert_gate(config)


@dataclass(frozen=True, kw_only=True)
class DeepSeek:
    """DeepSeek and its relatives: a few dense blocks first, then experts with shared experts, after any mixer.

    Attributes:
        mixer: Returns attention.
        has_correction: A checkpoint has a correction per expert, in 32 bits.
        dense_blocks: Returns the number of dense blocks, which are the first.
    """

    mixer: Callable[[ModelConfig, int], Parts]
    has_correction: bool = True
    dense_blocks: Callable[[ModelConfig], int] = lambda config: config.count("first_k_dense_replace")

    def __call__(self, config: ModelConfig, index: int) -> Parts:
        """Yield the parts of block `index`."""
        yield from self.mixer(config, index)
        yield rms_norms(config, 2)
        if self.is_dense(config, index):
            yield feed_forward(config)
            return
        width = config.size("moe_intermediate_size")
        yield experts(config, width=width, has_correction=self.has_correction)
        yield from shared_experts(config, width)

    def is_dense(self, config: ModelConfig, index: int) -> bool:
        """Whether block `index` has no experts."""
        default = "dense" if index < self.dense_blocks(config) else "sparse"
        return (config.listed("mlp_layer_types", index) or default) == "dense"


def shared_experts(config: ModelConfig, width: int, *, bias: bool = False) -> Parts:
    """Yield the shared experts, which are one feed-forward layer of their total width."""
    if config.count("n_shared_experts"):
        total = width * config.size("n_shared_experts")
        yield feed_forward(config, width=total, module="mlp.shared_experts", bias=bias)


def llama4(config: ModelConfig, index: int) -> Parts:
    """Llama-4: chunked attention in three of four blocks, experts with a shared expert in some or all blocks."""
    has_rope = config.listed("no_rope_layers", index) if config.get("no_rope_layers") else None
    if has_rope is None:
        has_rope = (index + 1) % config.size("no_rope_layer_interval", 4) != 0
    chunk = window(config, index, is_default=bool(has_rope), key="attention_chunk_size")
    yield attention(config, bias=config.flag("attention_bias"), window=chunk)
    yield rms_norms(config, 2)
    step, stated = config.size("interleave_moe_layer_step", 1), config.get("moe_layers")
    if not (index in stated if isinstance(stated, list) else (index + 1) % step == 0):
        yield feed_forward(config, width=config.size("intermediate_size_mlp"), module="feed_forward")
        return
    yield experts(config, module="feed_forward.experts", router="feed_forward.router")
    yield feed_forward(config, module="feed_forward.shared_expert")


def gpt_oss(config: ModelConfig, index: int) -> Parts:
    """gpt-oss: biases everywhere, also of routers; attention sinks; a window in every second block."""
    yield attention(config, bias=config.flag("attention_bias"), window=every(2)(config, index))
    yield experts(config, router="mlp.router", bias=True)
    yield vectors(config.heads + config.size("num_experts"))
    yield rms_norms(config, 2)


def granite_moe(config: ModelConfig, _index: int) -> Parts:
    """GraniteMoE with or without a shared expert."""
    yield attention(config, bias=config.flag("attention_bias"))
    yield from granite_experts(config)


def granite_moe_window(config: ModelConfig, index: int) -> Parts:
    """GraniteMoE with attention sinks, and a window in three of four blocks."""
    yield attention(config, bias=config.flag("attention_bias"), window=all_but_every_fourth(config, index))
    yield sinks(config)
    yield from granite_experts(config)


def granite_experts(config: ModelConfig) -> Parts:
    """Yield the feed-forward layers of a GraniteMoE block, and its norms."""
    yield rms_norms(config, 2)
    if config.count("num_experts"):
        yield experts(config, module="block_sparse_moe.experts", router="block_sparse_moe.router")
    width = config.count("shared_intermediate_size")
    if width:
        names = ("input_linear", "output_linear")
        yield feed_forward(config, width=width, module="shared_mlp", names=names, is_fused=True)


def ernie_moe(config: ModelConfig, index: int) -> Parts:
    """ERNIE-4.5-MoE; its correction is a parameter."""
    bias, last = config.flag("use_bias"), config.get("moe_layer_end_index", -1)
    last = config.layers - 1 if last in (None, -1) else last
    yield attention(config, bias=bias)
    yield rms_norms(config, 2)
    is_in_range = config.count("moe_layer_start_index") <= index <= last
    if not is_in_range or (index + 1) % config.size("moe_layer_interval", 1):
        yield feed_forward(config, bias=bias)
        return
    width = config.size("moe_intermediate_size")
    yield experts(config, width=width, bias=bias)
    yield vectors(config.size("num_experts"))
    yield from shared_experts(config, width, bias=bias)


def mellum(config: ModelConfig, index: int) -> Parts:
    """Mellum: experts in all blocks but those listed as dense."""
    yield attention(config, bias=config.flag("attention_bias"), window=window(config, index, is_default=False))
    yield head_norms(config)
    yield rms_norms(config, 2)
    if config.listed("mlp_layer_types", index) == "dense":
        yield feed_forward(config)
    else:
        yield experts(config, width=config.size("moe_intermediate_size"))


def afmoe(config: ModelConfig, index: int) -> Parts:
    """AFMoE: gated attention, four norms; its correction is a parameter."""
    yield attention(config, window=every("global_attn_every_n_layers")(config, index))
    yield Block(linears=(linear("self_attn.gate_proj", config.hidden, config.heads * config.head_dim),))
    yield head_norms(config)
    yield rms_norms(config, 4)
    if index < config.count("num_dense_layers"):
        yield feed_forward(config)
        return
    width = config.size("moe_intermediate_size")
    yield experts(config, width=width, router="mlp.router.gate")
    yield vectors(config.size("num_experts"))
    yield from shared_experts(config, width)


def hunyuan_moe(config: ModelConfig, _index: int) -> Parts:
    """HunYuan with experts."""
    yield attention(config, bias=config.flag("attention_bias"))
    yield head_norms(config)
    yield rms_norms(config, 2)
    yield experts(config, router="mlp.gate.wg")
    yield feed_forward(config, module="mlp.shared_mlp")
