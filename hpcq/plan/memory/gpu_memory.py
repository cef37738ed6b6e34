"""Memory of the fullest GPU of an evaluation: weights, KV cache, activations, engine.

Follows how vLLM 0.32 and accelerate split a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from hpcq.catalog.model_shape import Block, Linear, ModelShape
from hpcq.catalog.schemes import has_uniform_blocks, indivisible_linear, quantized_linears
from hpcq.core.frozen import dataclass
from hpcq.core.layer_split import balance, bytes_per_place, stage_layers
from hpcq.core.work_records import Scheme
from hpcq.plan.memory.weights import (
    GIB,
    block_bytes,
    embedding_bytes,
    outside_linear_bytes,
    part_bytes,
    value_bytes,
    weight_bytes,
)

GPU_MEMORY_UTILIZATION = 0.92
"""Share of a GPU's memory that vLLM uses by default (0.32, config/cache.py, gpu_memory_utilization)."""

TYPICAL_LENGTH = 4096
"""Tokens that all but a few benchmark prompts stay below."""

ENGINE_BYTES = 2 * GIB
"""Memory of a process without the model: CUDA context, kernels, graphs. Reported for Llama-3-8B on one H100: 1.79 GiB
(github.com/vllm-project/vllm, pull request 10511)."""

COMMUNICATION_BYTES = int(1.8 * GIB)
"""Buffers of NCCL and of the all-reduce with several GPUs. The same report has 3.58 GiB for two GPUs, all included."""

LOGITS_ROWS = 1024
"""Rows of logits in memory at the same time: a chunk of prompt log-probabilities, or as many sequences (vLLM 0.32,
v1/worker/gpu/sample/prompt_logprob.py)."""

LOGITS_BYTES = 16
"""Bytes per logit with its copies: 16 bits, float32, logarithm, sorted. The same report has 1.26 GiB of activations on
one GPU and on two, less than this estimates."""

MIN_EXPERT_WIDTH = 512
"""Narrowest part of an expert per GPU: below it, GPUs have whole experts by default. An assumption: matrix
multiplications of narrower parts use a GPU badly."""

STATE_BYTES = 4
"""Bytes per number in the state of a state-space or linear-attention layer: float32, the most that vLLM uses."""

_VOCABULARY_PADDING = 64  # vocab_parallel_embedding.py, DEFAULT_VOCAB_PADDING_SIZE
_BLOCK_TOKENS = 16
_LARGE_GPU_GIB = 70  # vLLM doubles the tokens per pass on GPUs of this size (arg_utils.py, get_batch_defaults)
_BATCHED_TOKENS = 8192
_HIDDEN_COPIES = 5
"""Copies of a token's hidden state in memory at the same time: residual, input, output, sum, normalized."""


@dataclass(frozen=True, kw_only=True)
class MemoryDemand:
    """Settings of the engine that determine its memory besides the weights.

    Attributes:
        sequences: Sequences in the KV cache.
        length: Tokens of each of them.
        kv_bytes: Bytes per number in the KV cache; 1: an FP8 KV cache.
        compute_bytes: Bytes per number in activations and in unquantized weights.
        batched_tokens: Tokens of one forward pass; None: vLLM's default.
        kv_cache_bytes: Size of the KV cache; None: it follows from `sequences` and `length`.
        gpu_memory_utilization: Share of the GPU's memory that may be used.
    """

    sequences: int = 8
    length: int = TYPICAL_LENGTH
    kv_bytes: int = 2
    compute_bytes: int = 2
    batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Distribution of a model over GPUs.

    Attributes:
        tensor: GPUs that share each weight matrix.
        pipeline: Groups of such GPUs (pipeline stages) that share the blocks.
        is_by_bytes: The stages are balanced by bytes, as in accelerate, not by number of layers, as in vLLM.
        divides_experts: The GPUs that share the other matrices have whole experts, each a part of them (expert
            parallelism), not a part of every expert.
    """

    tensor: int = 1
    pipeline: int = 1
    is_by_bytes: bool = False
    divides_experts: bool = False

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        stages = f"×PP{self.pipeline}" if self.pipeline > 1 else ""
        return f"TP{self.tensor}{stages}" + (f" with EP{self.tensor}" if self.divides_experts else "")


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Estimated bytes on the fullest GPU."""

    weights: int
    kv_cache: int
    activations: int
    engine: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.kv_cache + self.activations + self.engine


def gpu_memory(
    shape: ModelShape,
    scheme: Scheme,
    parallelism: Parallelism,
    demand: MemoryDemand,
    *,
    has_large_batch: bool = False,
    stored_bytes: int | None = None,
) -> GpuMemory:
    """Estimate the memory of the fullest GPU.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights in memory.
        parallelism: Distribution over GPUs.
        demand: Settings of the engine.
        has_large_batch: vLLM doubles the tokens per pass on this GPU (see `has_large_batch`).
        stored_bytes: Bytes of the tensors in the checkpoint, if they are known: they are distributed as the scheme's.
    """
    loaded = loaded_scheme(scheme, demand)
    ratio = stored_bytes / weight_bytes(shape, loaded) if stored_bytes else 1.0
    stages = _stages(shape, loaded, parallelism)
    activations = _activations(shape, parallelism, demand, has_large_batch=has_large_batch)
    engine = ENGINE_BYTES + (COMMUNICATION_BYTES if parallelism.gpus > 1 else 0)
    in_flight = batched_tokens(demand, has_large_batch=has_large_batch)
    kept = [_cache_bytes(block, parallelism.tensor, demand, in_flight) for block in shape.kinds]
    stated = demand.kv_cache_bytes
    estimates = (
        GpuMemory(
            weights=round(weights * ratio),
            kv_cache=sum(kept[kind] for kind in kinds) if stated is None else stated,
            activations=activations,
            engine=engine,
        )
        for kinds, weights in stages
    )
    return max(estimates, key=lambda estimate: estimate.total)


def indivisible_reason(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> str | None:
    """Return why vLLM cannot distribute the model this way; None: it can."""
    gpus = parallelism.tensor
    for what, count in _divided_sizes(shape, parallelism):
        if count % gpus:
            return f"{gpus} GPUs do not divide its {what} ({count})"
    for attention, _ in shape.attentions:
        heads = attention.kv_heads
        if not attention.latent and heads % gpus and gpus % heads:
            return f"its {heads} key-value heads can neither be divided among {gpus} GPUs nor repeated evenly"
    vocabulary = _padded_vocabulary(shape)
    if vocabulary % gpus:
        return f"{gpus} GPUs do not divide its vocabulary ({vocabulary}, padded)"
    if parallelism.pipeline > shape.layers:
        return f"{parallelism.pipeline} pipeline stages are more than its {shape.layers} layers"
    # As vLLM's verify_group_size_divides_partition does, for the input width of a layer on each GPU.
    divided = [one for one in quantized_linears(scheme, shape) if _split(one, parallelism) == "row" and gpus > 1]
    linear = indivisible_linear(scheme, [_partition(one, shape.kinds[0], gpus) for one in divided])
    if linear:
        return (
            f"groups of {scheme.group_size} do not divide {linear.in_features}, the input width of {linear.name}"
            f" on each of {gpus} GPUs"
        )
    return None


def has_whole_experts(shape: ModelShape, scheme: Scheme, tensor: int, *, requested: bool | None = None) -> bool:
    """Return whether `tensor` GPUs have whole experts (expert parallelism), not a part of every expert.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights.
        tensor: GPUs that share each weight matrix.
        requested: What the manifest requests. None: they have whole experts if parts would be narrow, or if the experts
            or the groups of the scheme cannot be divided.
    """
    if tensor == 1 or not shape.experts:
        return False
    if requested is not None:
        return requested
    widths = [block.experts.width for block in shape.kinds if block.experts]
    return min(widths) < MIN_EXPERT_WIDTH * tensor or bool(
        indivisible_reason(shape, scheme, Parallelism(tensor=tensor))
    )


def decompressed_scheme(scheme: Scheme) -> Scheme:
    """Return the scheme of a quantized checkpoint that transformers has loaded: every weight in 16 bits."""
    base = replace(scheme, tool="none", method="none", ignore=(), checkpoint_format=None)
    return replace(base, weights="bf16", activations="bf16")


def loaded_scheme(scheme: Scheme, demand: MemoryDemand) -> Scheme:
    """Return the scheme of the weights in memory: unquantized weights have the type of the computation."""
    if scheme.is_quantized:
        return scheme
    return replace(scheme, weights="fp32" if demand.compute_bytes == 4 else "bf16")  # noqa: PLR2004 (bytes of a float)


@lru_cache(maxsize=4096)
def _stages(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return per pipeline stage the kinds of its blocks, and the bytes of weights on each of its GPUs."""
    if parallelism.is_by_bytes:
        return _balanced_stages(shape, scheme, parallelism.pipeline)
    value, gpus = value_bytes(scheme), parallelism.tensor
    parts = [_block_partition(block, parallelism) for block in shape.kinds]
    vocabulary = math.ceil(_padded_vocabulary(shape) / gpus)
    embeddings = embedding_bytes(replace(shape, vocab_size=vocabulary), value)
    last = shape.other * value + sum(
        outside_linear_bytes(
            replace(linear, out_features=vocabulary) if linear.out_features == shape.vocab_size else linear, scheme
        )
        for linear in shape.linears
    )
    stages, first = [], 0
    for stage, layers in enumerate(stage_layers(shape.layers, parallelism.pipeline)):
        weights = _blocks_bytes(shape, scheme, parts, range(first, first + layers))
        is_last = stage == parallelism.pipeline - 1
        if stage == 0:
            weights += embeddings
        if is_last:
            weights += last + (embeddings if shape.tied_embeddings and stage else 0)
        stages.append((shape.pattern[first : first + layers], weights))
        first += layers
    return tuple(stages)


def _balanced_stages(shape: ModelShape, scheme: Scheme, gpus: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    sizes = part_bytes(shape, scheme)
    places = balance(sizes, [math.inf] * gpus) or []
    blocks = places[1 : 1 + shape.layers]  # the first part is the embeddings
    kinds = [
        tuple(kind for kind, place in zip(shape.pattern, blocks, strict=True) if place == gpu) for gpu in range(gpus)
    ]
    return tuple(zip(kinds, bytes_per_place(sizes, places, gpus), strict=True))


def _blocks_bytes(shape: ModelShape, scheme: Scheme, parts: list[Block], blocks: range) -> int:
    if has_uniform_blocks(scheme):
        firsts = {shape.pattern[index]: index for index in reversed(blocks)}
        counts = Counter(shape.pattern[index] for index in blocks)
        return sum(counts[kind] * block_bytes(shape, scheme, index, parts[kind]) for kind, index in firsts.items())
    return sum(block_bytes(shape, scheme, index, parts[shape.pattern[index]]) for index in blocks)


def _block_partition(block: Block, parallelism: Parallelism) -> Block:
    """Return the part of a block on one GPU; norms and other small parameters are on all."""
    gpus, experts = parallelism.tensor, block.experts
    if experts and parallelism.divides_experts:
        experts = replace(experts, count=math.ceil(experts.count / gpus))
    elif experts:
        experts = replace(experts, linears=tuple(_partition(one, block, gpus) for one in experts.linears))
    return replace(block, linears=tuple(_partition(one, block, gpus) for one in block.linears), experts=experts)


def _partition(linear: Linear, block: Block, gpus: int) -> Linear:
    """Return the part of a linear layer on one of `gpus` GPUs; key-value heads are repeated if there are fewer."""
    if linear.tp_split == "none" or gpus == 1:
        return linear
    if linear.tp_split == "row":
        return replace(linear, in_features=math.ceil(linear.in_features / gpus))
    kept, attention = 0, block.attention
    if linear.kv_features and attention:
        kept = linear.kv_features // attention.kv_heads * attention.kv_heads_per_gpu(gpus)
    return replace(linear, out_features=math.ceil((linear.out_features - linear.kv_features) / gpus) + kept)


def _split(linear: Linear, parallelism: Parallelism) -> str:
    is_whole = parallelism.divides_experts and "*" in linear.name
    return "none" if is_whole else linear.tp_split


def _divided_sizes(shape: ModelShape, parallelism: Parallelism) -> Iterator[tuple[str, int]]:
    """Yield the sizes that the number of GPUs must divide, with their names."""
    yield from (("attention heads", attention.heads) for attention, _ in shape.attentions)
    yield from (("state-space heads", block.state_heads) for block in shape.kinds)
    yield from (("feed-forward width", block.feed_forward) for block in shape.kinds)
    for block in shape.kinds:
        if block.experts and not parallelism.divides_experts:
            yield "expert width", block.experts.width
        yield from ((f"input width of {one.name}", one.in_features) for one in block.linears if one.tp_split == "row")


def _cache_bytes(block: Block, gpus: int, demand: MemoryDemand, in_flight: int) -> int:
    """Return the bytes that one block keeps of all sequences on each GPU.

    A block with a window keeps it and the tokens of one forward pass (vLLM 0.32, v1/kv_cache_interface.py).
    """
    attention, total = block.attention, 0
    if attention:
        length = demand.length
        if attention.window is not None:
            length = min(length, attention.window - 1 + in_flight)
        tokens = demand.sequences * math.ceil(length / _BLOCK_TOKENS) * _BLOCK_TOKENS
        total = attention.kept_numbers(gpus) * demand.kv_bytes * tokens
    return total + demand.sequences * math.ceil(block.state / gpus) * STATE_BYTES


def _padded_vocabulary(shape: ModelShape) -> int:
    return math.ceil(shape.vocab_size / _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def batched_tokens(demand: MemoryDemand, *, has_large_batch: bool) -> int:
    """Return the tokens of one forward pass."""
    return demand.batched_tokens or _BATCHED_TOKENS * (2 if has_large_batch else 1)


def _activations(shape: ModelShape, parallelism: Parallelism, demand: MemoryDemand, *, has_large_batch: bool) -> int:
    """Return the peak of one forward pass: of a feed-forward layer, of attention, or of the logits."""
    tokens = batched_tokens(demand, has_large_batch=has_large_batch)
    widest = max(_block_activations(block, shape, parallelism) for block in shape.kinds)
    layer_bytes = tokens * (_HIDDEN_COPIES * shape.hidden_size + widest) * demand.compute_bytes
    return int(max(layer_bytes, min(tokens, LOGITS_ROWS) * shape.vocab_size * LOGITS_BYTES))


def _block_activations(block: Block, shape: ModelShape, parallelism: Parallelism) -> float:
    """Return the numbers per token in the widest layer of a block on one GPU, besides the hidden state.

    Fused kernels of experts hold the layers and the output of each active expert.
    """
    attention, experts = block.attention, block.experts
    heads = (attention.heads + attention.kv_heads) * (attention.key_dim + attention.value_dim) if attention else 0
    widest = max(block.activations, heads) / parallelism.tensor
    if experts is None:
        return widest
    divisor = 1 if parallelism.divides_experts else parallelism.tensor
    width = len(experts.linears) * experts.width / divisor
    return widest + experts.active * (width + shape.hidden_size)


def has_large_batch(memory_gib: float, name: str) -> bool:
    """Return whether vLLM doubles the tokens per pass on this GPU: on large ones, except the A100 (vLLM, #17885)."""
    return memory_gib >= _LARGE_GPU_GIB and not name.startswith("A100")
