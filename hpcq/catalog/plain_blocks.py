"""Blocks with attention, a feed-forward layer or experts, and norms: Llama and what differs from it by options."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hpcq.catalog.attention_windows import Window, no_window
from hpcq.catalog.block_parts import (
    GATED,
    HEADS,
    attention,
    feed_forward,
    full_norms,
    head_norms,
    layer_norms,
    rms_norms,
    vectors,
)
from hpcq.catalog.model_config import ModelConfig
from hpcq.catalog.model_shape import Block
from hpcq.core.frozen import dataclass

Parts = Iterable[Block]
Norms = Callable[[ModelConfig, int], Block]
OUT_PROJ = (*HEADS[:3], "out_proj")
FUSED_HEADS = ("query_key_value", "dense")
FOUR_TIMES = ("dense_h_to_4h", "dense_4h_to_h")
UNGATED = ("up_proj", "down_proj")
GATE_UP = ("gate_up_proj", "down_proj")
"""Names of layers, for `heads` and `mlp` of `Plain`, and for the same arguments of functions."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Blocks with attention, a feed-forward layer or experts, and norms: Llama and what differs from it by options.

    A bias is a key of the configuration, or a constant.

    Attributes:
        bias: Biases of queries, keys and values.
        out_bias: Bias of attention's output; None: as `bias`.
        heads: Names of the layers of attention.
        query_norms: Norms of queries and keys; None: there are none.
        window: Returns the window of a block.
        mlp_bias: Biases of the feed-forward layer.
        mlp: Names of its layers.
        is_fused: Gate and input are one layer.
        experts: Returns experts in place of the feed-forward layer.
        norms: Norms of the hidden state.
        kind: Their kind.
    """

    bias: str | bool = "attention_bias"
    out_bias: str | bool | None = None
    heads: tuple[str, ...] = HEADS
    query_norms: Callable[[ModelConfig], Block] | None = None
    window: Window = no_window
    mlp_bias: str | bool = False
    mlp: tuple[str, ...] = GATED
    is_fused: bool = False
    experts: Callable[[ModelConfig], Block] | None = None
    norms: int = 2
    kind: Norms = rms_norms

    def __call__(self, config: ModelConfig, index: int) -> Parts:
        """Yield the parts of block `index`."""
        yield from self.mixer(config, index)
        if self.experts:
            yield self.experts(config)
        else:
            yield feed_forward(config, names=self.mlp, bias=_flag(config, self.mlp_bias), is_fused=self.is_fused)
        yield self.kind(config, self.norms)

    def attention(self, config: ModelConfig, index: int) -> Block:
        """Return the attention of block `index`."""
        out_bias = None if self.out_bias is None else _flag(config, self.out_bias)
        limit = self.window(config, index)
        return attention(config, bias=_flag(config, self.bias), out_bias=out_bias, names=self.heads, window=limit)

    def mixer(self, config: ModelConfig, index: int) -> Parts:
        """Yield attention with its norms."""
        yield self.attention(config, index)
        if self.query_norms:
            yield self.query_norms(config)


def _flag(config: ModelConfig, bias: str | bool) -> bool:  # noqa: FBT001 (a value, not an option)
    return config.flag(bias) if isinstance(bias, str) else bias


def stablelm(config: ModelConfig, _index: int) -> Parts:
    """StableLM: norms with biases, optionally one for both branches."""
    yield attention(config, bias=config.flag("use_qkv_bias"), out_bias=False)
    if config.flag("qk_layernorm"):
        yield full_norms(config)
    yield feed_forward(config)
    yield layer_norms(config, 1 if config.flag("use_parallel_residual") else 2)


def cohere_norms(config: ModelConfig) -> Block:
    """Return Command-R's norms of queries and keys."""
    return full_norms(config) if config.flag("use_qk_norm") else vectors(0)


def glm_norms(config: ModelConfig) -> Block:
    """Return GLM-4.5's norms of queries and keys."""
    return head_norms(config) if config.flag("use_qk_norm") else vectors(0)


def biased_norms(config: ModelConfig) -> Block:
    """Return the norms of queries and keys of Phi and Persimmon."""
    return vectors(4 * config.head_dim if config.flag("qk_layernorm") else 0)


def apertus_norms(config: ModelConfig) -> Block:
    """Return Apertus' norms of queries and keys, and the parameters and constants of its activation function."""
    return Block(other=2 * config.head_dim + 2, buffers=2)


def bitnet_norms(config: ModelConfig) -> Block:
    """Return BitNet's norms before the output layers."""
    return vectors(config.hidden + config.width)


def sinks(config: ModelConfig) -> Block:
    """Return attention sinks, one per head."""
    return vectors(config.heads)
