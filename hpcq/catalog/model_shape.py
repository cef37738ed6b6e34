"""Shape of a decoder: its blocks with their linear layers, experts and cache, and what is outside the blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any, Literal

from hpcq.core.frozen import dataclass

HEAD = "lm_head"
"""Usual name of the head, which schemes ignore by default."""

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number of the types of base checkpoints."""
DEFAULT_VALUE_BYTES = 2

TpSplit = Literal["column", "row", "none"]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer, y = W·x + b.

    Attributes:
        name: Its name inside the block, as transformers 5.17 has it; `*` is the number of an expert.
        in_features: Width of the input.
        out_features: Width of the output.
        tp_split: Tensor parallelism: "column" divides the outputs, "row" the inputs (vLLM's ColumnParallelLinear and
            RowParallelLinear); "none": every GPU has all of it.
        has_bias: It adds a bias.
        kv_features: Outputs that are keys and values. GPUs repeat them if there are fewer key-value heads than GPUs.
        is_quantizable: A scheme may quantize it; false for routers and others (`unquantized_modules.py`).
    """

    name: str
    in_features: int
    out_features: int
    tp_split: TpSplit = "column"
    has_bias: bool = False
    kv_features: int = 0
    is_quantizable: bool = True

    @property
    def weights(self) -> int:
        """Weights, without biases."""
        return self.in_features * self.out_features

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + (self.out_features if self.has_bias else 0)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The routed experts of a block; shared experts are among the block's linear layers.

    Attributes:
        count: Number of experts.
        active: Experts that compute each token.
        width: Width of an expert's feed-forward layer.
        linears: Linear layers of one expert.
    """

    count: int
    active: int
    width: int
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        """Weights and biases of all experts."""
        return self.count * sum(linear.parameters for linear in self.linears)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What attention keeps per token.

    Attributes:
        heads: Number of query heads.
        kv_heads: Number of key-value heads.
        key_dim: Width of a head's key.
        value_dim: Width of a head's value.
        latent: Numbers per token that stand for the keys and values of all heads (MLA). Every GPU of a tensor-parallel
            group keeps all of them. 0: keys and values are kept.
        window: Tokens before the current one that it attends to (sliding window, chunk); None: all.
        is_shared: It uses the keys and values of an earlier block.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    latent: int = 0
    window: int | None = None
    is_shared: bool = False

    def kept_numbers(self, gpus: int) -> int:
        """Return the numbers per token in the KV cache of each of `gpus` tensor-parallel GPUs."""
        if self.is_shared:
            return 0
        return self.latent or self.kv_heads_per_gpu(gpus) * (self.key_dim + self.value_dim)

    def kv_heads_per_gpu(self, gpus: int) -> int:
        """Return the key-value heads on each of `gpus` GPUs, which are repeated if there are fewer than GPUs."""
        return max(1, -(-self.kv_heads // gpus))

    def attended(self, length: float) -> float:
        """Return how many of the `length` tokens before it a token attends to at most."""
        return length if self.window is None else min(length, self.window)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block.

    Attributes:
        linears: Linear layers, without those of routed experts.
        other: Parameters that are in no linear layer: norms, convolutions, decay rates.
        float32: Numbers in a checkpoint that are not parameters and always take 32 bits: corrections of the routers.
        buffers: Other such numbers, in the type of the checkpoint.
        experts: Routed experts; None: the block has none.
        attention: None: the block has none.
        state: Numbers that a state-space or linear-attention layer keeps per sequence, of any length.
        state_heads: Heads of that layer, which tensor parallelism divides; 0: unknown or none.
        feed_forward: Width of the widest feed-forward layer, without routed experts; 0: none.
        activations: Numbers per token that the feed-forward layers hold at the same time.
    """

    linears: tuple[Linear, ...] = ()
    other: int = 0
    float32: int = 0
    buffers: int = 0
    experts: Experts | None = None
    attention: Attention | None = None
    state: int = 0
    state_heads: int = 0
    feed_forward: int = 0
    activations: int = 0

    @property
    def groups(self) -> tuple[tuple[int, tuple[Linear, ...]], ...]:
        """Linear layers with the number of times that the block has them: once, and those of an expert per expert."""
        experts = ((self.experts.count, self.experts.linears),) if self.experts else ()
        return ((1, self.linears), *experts)

    @cached_property
    def quantizable(self) -> tuple[Linear, ...]:
        """Different linear layers that a scheme may quantize, with those of one expert."""
        return tuple(linear for _, linears in self.groups for linear in linears if linear.is_quantizable)

    @cached_property
    def parameters(self) -> int:
        """All parameters."""
        return self.other + sum(count * linear.parameters for count, linears in self.groups for linear in linears)

    @cached_property
    def weights(self) -> int:
        """Weights of the linear layers, without biases."""
        return sum(count * linear.weights for count, linears in self.groups for linear in linears)

    @cached_property
    def active_weights(self) -> int:
        """Weights of the linear layers that compute one token."""
        experts = self.experts
        active = experts.active * sum(linear.weights for linear in experts.linears) if experts else 0
        return active + sum(linear.weights for linear in self.linears)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model.

    Attributes:
        hidden_size: Width of the hidden state.
        vocab_size: Number of tokens in the vocabulary.
        context_length: Maximum number of positions; None: unlimited.
        kinds: The different blocks.
        pattern: Index in `kinds` of every block, in order.
        tied_embeddings: The head shares the weights of the embeddings.
        embedding_size: Width of the embeddings.
        linears: Linear layers outside the blocks, with their full names; an untied head is the last of them.
        other: Parameters outside the blocks that are in no linear layer, without the embeddings.
        prefix: Name of the list of blocks.
        architecture: The architecture in config.json; None: unknown.
        left_out: Parts of the checkpoint that are not included, such as a vision encoder.
        checkpoint_bytes: Size of the tensors in the checkpoint's safetensors files; None: unknown.
        stored_dtype: Type of the checkpoint's tensors (float32, bfloat16, float16); None: unknown.
        config: The configuration that it was read from.
        contradiction: What `checkpoint_bytes` contradicts, as a sentence without full stop; None: nothing.
    """

    hidden_size: int
    vocab_size: int
    context_length: int | None
    kinds: tuple[Block, ...]
    pattern: tuple[int, ...]
    tied_embeddings: bool
    embedding_size: int
    linears: tuple[Linear, ...] = ()
    other: int = 0
    prefix: str = "model.layers"
    architecture: str | None = field(default=None, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)
    checkpoint_bytes: int | None = field(default=None, compare=False)
    stored_dtype: str | None = field(default=None, compare=False)
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    contradiction: str | None = field(default=None, compare=False)

    @property
    def value_bytes(self) -> int:
        """Bytes per number in the checkpoint: of its type; of most checkpoints if that is unknown."""
        return VALUE_BYTES.get(self.stored_dtype or "", DEFAULT_VALUE_BYTES)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.pattern)

    @property
    def blocks(self) -> Iterator[Block]:
        """All blocks, in order."""
        return (self.kinds[kind] for kind in self.pattern)

    def linear_name(self, index: int, linear: Linear) -> str:
        """Return the full name of a linear layer of block `index`; of an expert's, that of the first expert."""
        return f"{self.prefix}.{index}.{linear.name.replace('*', '0')}"

    @cached_property
    def counts(self) -> tuple[tuple[Block, int], ...]:
        """Each kind of block with its number."""
        counts = Counter(self.pattern)
        return tuple((block, counts[kind]) for kind, block in enumerate(self.kinds))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, with tied embeddings counted once."""
        outside = self.other + sum(linear.parameters for linear in self.linears)
        blocks = sum(count * block.parameters for block, count in self.counts)
        return self.vocab_size * self.embedding_size + outside + blocks

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks, without biases."""
        return sum(count * block.weights for block, count in self.counts)

    @cached_property
    def active_linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks that compute one token."""
        return sum(count * block.active_weights for block, count in self.counts)

    @cached_property
    def quantizable(self) -> tuple[Linear, ...]:
        """Different linear layers of all blocks that a scheme may quantize."""
        return tuple(dict.fromkeys(linear for block in self.kinds for linear in block.quantizable))

    @property
    def experts(self) -> int:
        """Number of routed experts of a block; 0: no block has any."""
        return max((block.experts.count for block in self.kinds if block.experts), default=0)

    @property
    def attentions(self) -> tuple[tuple[Attention, int], ...]:
        """Each kind of attention with the number of its blocks."""
        return tuple((block.attention, count) for block, count in self.counts if block.attention)
