"""Memory of the fullest GPU of an evaluation: weights, KV cache, activations, engine.

Follows how vLLM 0.32 and accelerate split a model.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from hpcq.catalog.models import Linear, ModelShape
from hpcq.catalog.schemes import indivisible_linear
from hpcq.core.layer_split import balance, bytes_per_place, stage_layers
from hpcq.core.work import Scheme
from hpcq.plan.memory.weights import (
    GIB,
    block_bytes,
    embedding_bytes,
    has_uniform_blocks,
    head_bytes,
    part_bytes,
    value_bytes,
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
    """

    tensor: int = 1
    pipeline: int = 1
    is_by_bytes: bool = False

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f"×PP{self.pipeline}" if self.pipeline > 1 else "")


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
) -> GpuMemory:
    """Estimate the memory of the fullest GPU.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights in memory.
        parallelism: Distribution over GPUs.
        demand: Settings of the engine.
        has_large_batch: vLLM doubles the tokens per pass on this GPU (see `has_large_batch`).
    """
    stages = _stages(shape, loaded_scheme(scheme, demand), parallelism)
    activations = _activations(shape, parallelism, demand, has_large_batch=has_large_batch)
    engine = ENGINE_BYTES + (COMMUNICATION_BYTES if parallelism.gpus > 1 else 0)
    token = 2 * _kv_heads(shape, parallelism.tensor) * shape.head_dim * demand.kv_bytes
    tokens = demand.sequences * math.ceil(demand.length / _BLOCK_TOKENS) * _BLOCK_TOKENS
    stated = demand.kv_cache_bytes
    estimates = (
        GpuMemory(
            weights=weights,
            kv_cache=layers * token * tokens if stated is None else stated,
            activations=activations,
            engine=engine,
        )
        for layers, weights in stages
    )
    return max(estimates, key=lambda estimate: estimate.total)


def indivisible_reason(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> str | None:
    """Return why vLLM cannot distribute the model this way; None: it can."""
    gpus = parallelism.tensor
    vocabulary = _padded_vocabulary(shape)
    for what, count in (("attention heads", shape.heads), ("feed-forward width", shape.intermediate_size)):
        if count % gpus:
            return f"{gpus} GPUs do not divide its {what} ({count})"
    if shape.kv_heads % gpus and gpus % shape.kv_heads:
        return f"its {shape.kv_heads} key-value heads can neither be divided among {gpus} GPUs nor repeated evenly"
    if vocabulary % gpus:
        return f"{gpus} GPUs do not divide its vocabulary ({vocabulary}, padded)"
    if parallelism.pipeline > shape.layers:
        return f"{parallelism.pipeline} pipeline stages are more than its {shape.layers} layers"
    # As vLLM's verify_group_size_divides_partition does, for the input width of a layer on each GPU.
    partitions = [_partition(linear, shape, gpus) for linear in shape.linears if linear.tp_split == "row" and gpus > 1]
    linear = indivisible_linear(scheme, partitions)
    if linear:
        return (
            f"groups of {scheme.group_size} do not divide {linear.in_features}, the input width of {linear.name}"
            f" on each of {gpus} GPUs"
        )
    return None


def decompressed_scheme(scheme: Scheme) -> Scheme:
    """Return the scheme of a quantized checkpoint that transformers has loaded: every weight in 16 bits."""
    return replace(scheme, tool="none", method="none", weights="bf16", activations="bf16", ignore=())


def loaded_scheme(scheme: Scheme, demand: MemoryDemand) -> Scheme:
    """Return the scheme of the weights in memory: unquantized weights have the type of the computation."""
    if scheme.is_quantized:
        return scheme
    return replace(scheme, weights="fp32" if demand.compute_bytes == 4 else "bf16")  # noqa: PLR2004 (bytes of a float)


@lru_cache(maxsize=4096)
def _stages(shape: ModelShape, scheme: Scheme, parallelism: Parallelism) -> tuple[tuple[int, int], ...]:
    """Return per pipeline stage the number of layers, and the bytes of weights on each of its GPUs."""
    if parallelism.is_by_bytes:
        return _balanced_stages(shape, scheme, parallelism.pipeline)
    value = value_bytes(scheme)
    linears = [_partition(linear, shape, parallelism.tensor) for linear in shape.linears]
    vocabulary = _padded_vocabulary(shape)
    padded = replace(shape, vocab_size=math.ceil(vocabulary / parallelism.tensor))
    embeddings = embedding_bytes(padded, value)
    head = embeddings if shape.tied_embeddings else head_bytes(padded, scheme)
    stages, first = [], 0
    for stage, layers in enumerate(stage_layers(shape.layers, parallelism.pipeline)):
        weights = _blocks_bytes(shape, scheme, linears, range(first, first + layers))
        is_last = stage == parallelism.pipeline - 1
        if stage == 0:
            weights += embeddings
        if is_last:
            weights += shape.hidden_size * value
            weights += 0 if shape.tied_embeddings and stage == 0 else head
        stages.append((layers, weights))
        first += layers
    return tuple(stages)


def _balanced_stages(shape: ModelShape, scheme: Scheme, gpus: int) -> tuple[tuple[int, int], ...]:
    sizes = part_bytes(shape, scheme)
    places = balance(sizes, [math.inf] * gpus) or []
    layers = Counter(places[1 : 1 + shape.layers])  # the first part is the embeddings
    return tuple((layers[gpu], weights) for gpu, weights in enumerate(bytes_per_place(sizes, places, gpus)))


def _blocks_bytes(shape: ModelShape, scheme: Scheme, linears: list[Linear], blocks: range) -> int:
    if has_uniform_blocks(scheme):
        return len(blocks) * block_bytes(shape, scheme, 0, linears)
    return sum(block_bytes(shape, scheme, block, linears) for block in blocks)


def _partition(linear: Linear, shape: ModelShape, gpus: int) -> Linear:
    """Return the part of a linear layer on one of `gpus` GPUs; key-value heads are repeated if there are fewer."""
    if linear.tp_split == "row":
        return replace(linear, in_features=math.ceil(linear.in_features / gpus))
    if linear.name in ("self_attn.k_proj", "self_attn.v_proj"):
        return replace(linear, out_features=_kv_heads(shape, gpus) * shape.head_dim)
    return replace(linear, out_features=math.ceil(linear.out_features / gpus))


def _kv_heads(shape: ModelShape, gpus: int) -> int:
    return max(1, math.ceil(shape.kv_heads / gpus))


def _padded_vocabulary(shape: ModelShape) -> int:
    return math.ceil(shape.vocab_size / _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def _activations(shape: ModelShape, parallelism: Parallelism, demand: MemoryDemand, *, has_large_batch: bool) -> int:
    """Return the peak of one forward pass: of a feed-forward layer, of attention, or of the logits."""
    tokens = demand.batched_tokens or _BATCHED_TOKENS * (2 if has_large_batch else 1)
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    widest = max((2 + shape.gated_mlp) * shape.intermediate_size, attention) / parallelism.tensor
    layer_bytes = tokens * (_HIDDEN_COPIES * shape.hidden_size + widest) * demand.compute_bytes
    return int(max(layer_bytes, min(tokens, LOGITS_ROWS) * shape.vocab_size * LOGITS_BYTES))


def has_large_batch(memory_gib: float, name: str) -> bool:
    """Return whether vLLM doubles the tokens per pass on this GPU: on large ones, except the A100 (vLLM, #17885)."""
    return memory_gib >= _LARGE_GPU_GIB and not name.startswith("A100")
