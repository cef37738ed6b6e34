"""What one GPU must hold of a variant that is split over several: weights, KV cache, activations, the engine itself.

Knows how vLLM 0.32 and accelerate split a model; knows no cluster. Whether it fits is for the planner to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from hpcq.catalog.models import Linear, ModelShape
from hpcq.core.work import Scheme
from hpcq.plan.memory.weights import GIB, block_bytes, blocks_are_alike, embedding_bytes, head_bytes, value_bytes

SHARE = 0.92
"""Of a GPU's memory that vLLM takes unless told otherwise (0.32, config/cache.py, gpu_memory_utilization)."""

ORDINARY_LENGTH = 4096
"""Tokens of the prompts that benchmarks ask, at most but for a few."""

ENGINE_BYTES = 2 * GIB
"""What a process takes beside the model: CUDA's context, kernels, graphs. Llama-3-8B on an H100 told of 1.79 GiB
(github.com/vllm-project/vllm, pull request 10511)."""

COMMUNICATION_BYTES = int(1.8 * GIB)
"""NCCL's and the all-reduce's buffers, where several GPUs work together: the same report has 3.58 GiB for two."""

LOGITS_ROWS = 1024
"""Rows of logits that are held together: prompt log-probabilities in chunks, or as many sequences (vLLM 0.32,
v1/worker/gpu/sample/prompt_logprob.py)."""

LOGITS_BYTES = 16
"""Of a logit with its copies: 16 bits, float32, its logarithm, what is sorted. The same report has 1.26 GiB for
activations on one GPU and on two, less than this gives."""

_VOCABULARY_PADDING = 64  # vocab_parallel_embedding.py, DEFAULT_VOCAB_PADDING_SIZE
_BLOCK_TOKENS = 16
_LARGE_GPU_GIB = 70  # from here on vLLM computes twice as many tokens at once (arg_utils.py, get_batch_defaults)
_BATCHED_TOKENS = 8192
_HIDDEN_COPIES = 5
"""Of a token's hidden state at once: residual, input, output, and what is added and normalised."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be held beside the weights.

    sequences, length: of the KV cache, in tokens each. kv_bytes: of one of its numbers; 1 is an FP8 KV cache.
    compute_bytes: of a number in what is computed, and of weights that are not quantized. batched_tokens: computed in
    one pass; None: as the engine does. kv_cache_bytes: of the KV cache, whatever it would hold; None: as reckoned.
    share: of the GPU's memory that all of it may take.
    """

    sequences: int = 8
    length: int = ORDINARY_LENGTH
    kv_bytes: int = 2
    compute_bytes: int = 2
    batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    share: float = SHARE


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a model is spread: each matrix over `tensor` GPUs, the blocks over `stages` groups of such."""

    tensor: int = 1
    stages: int = 1

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tensor * self.stages

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f"×PP{self.stages}" if self.stages > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes on the GPU that must hold most."""

    weights: int
    kv_cache: int
    activations: int
    engine: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv_cache + self.activations + self.engine


def need_of(shape: ModelShape, scheme: Scheme, split: Split, demand: Demand, *, is_large_gpu: bool = False) -> Need:
    """What the fullest GPU of `split` holds."""
    stages = _stages(shape, loaded(scheme, demand), split)
    activations = _activations(shape, split, demand, is_large_gpu=is_large_gpu)
    engine = ENGINE_BYTES + (COMMUNICATION_BYTES if split.gpus > 1 else 0)
    token = 2 * _kv_heads(shape, split.tensor) * shape.head_dim * demand.kv_bytes
    tokens = demand.sequences * math.ceil(demand.length / _BLOCK_TOKENS) * _BLOCK_TOKENS
    given = demand.kv_cache_bytes
    needs = (
        Need(
            weights=weights,
            kv_cache=layers * token * tokens if given is None else given,
            activations=activations,
            engine=engine,
        )
        for layers, weights in stages
    )
    return max(needs, key=lambda need: need.total)


def indivisible(shape: ModelShape, scheme: Scheme, split: Split) -> str | None:
    """Why vLLM cannot split the model so; None: it can."""
    parts = split.tensor
    vocabulary = _padded_vocabulary(shape)
    for what, count in (("attention heads", shape.heads), ("feed-forward width", shape.intermediate)):
        if count % parts:
            return f"{parts} GPUs do not divide its {what} ({count})"
    if shape.kv_heads % parts and parts % shape.kv_heads:
        return f"its {shape.kv_heads} key-value heads can neither be divided among {parts} GPUs nor repeated evenly"
    if vocabulary % parts:
        return f"{parts} GPUs do not divide its vocabulary ({vocabulary}, padded)"
    if split.stages > shape.layers:
        return f"{split.stages} stages are more than its {shape.layers} layers"
    if scheme.granularity == "group" and scheme.group_size and scheme.is_quantized and parts > 1:
        # verify_group_size_divides_partition, of what each GPU has of a layer's inputs
        for linear in shape.linears:
            inputs = _part(linear, shape, parts).inputs
            if linear.cut == "inputs" and inputs % scheme.group_size:
                return f"groups of {scheme.group_size} do not divide {inputs}, what {parts} GPUs have of {linear.name}"
    return None


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each stage as vLLM 0.32 deals them: what is left over goes to the last but one, and on backwards."""
    dealt = [layers // stages] * stages
    for back in range(2, layers % stages + 2):
        dealt[-back] += 1
    return dealt


def decompressed(scheme: Scheme) -> Scheme:
    """What transformers holds of a quantized checkpoint: every weight in 16 bits."""
    return replace(scheme, tool="none", method="none", weights="bf16", activations="bf16", ignore=())


def loaded(scheme: Scheme, demand: Demand) -> Scheme:
    """What is not quantized takes what is computed in."""
    if scheme.is_quantized:
        return scheme
    return replace(scheme, weights="fp32" if demand.compute_bytes == 4 else "bf16")  # noqa: PLR2004 (bytes of a float)


@lru_cache(maxsize=4096)
def _stages(shape: ModelShape, scheme: Scheme, split: Split) -> tuple[tuple[int, int], ...]:
    """Of each stage its layers, and the bytes of weights on one of its GPUs."""
    value = value_bytes(scheme)
    parts = [_part(linear, shape, split.tensor) for linear in shape.linears]
    vocabulary = _padded_vocabulary(shape)
    padded = replace(shape, vocabulary=math.ceil(vocabulary / split.tensor))
    embeddings = embedding_bytes(padded, value)
    head = embeddings if shape.tied_embeddings else head_bytes(padded, scheme)
    found, first = [], 0
    for stage, layers in enumerate(stage_layers(shape.layers, split.stages)):
        weights = _blocks(shape, scheme, parts, range(first, first + layers))
        is_last = stage == split.stages - 1
        if stage == 0:
            weights += embeddings
        if is_last:
            weights += shape.hidden * value
            weights += 0 if shape.tied_embeddings and stage == 0 else head
        found.append((layers, weights))
        first += layers
    return tuple(found)


def _blocks(shape: ModelShape, scheme: Scheme, parts: list[Linear], blocks: range) -> int:
    if blocks_are_alike(scheme):
        return len(blocks) * block_bytes(shape, scheme, 0, parts)
    return sum(block_bytes(shape, scheme, block, parts) for block in blocks)


def _part(linear: Linear, shape: ModelShape, tensor: int) -> Linear:
    """What one of `tensor` GPUs has of a linear layer; key-value heads are repeated where there are fewer of them."""
    if linear.cut == "inputs":
        return replace(linear, inputs=math.ceil(linear.inputs / tensor))
    if linear.name in ("self_attn.k_proj", "self_attn.v_proj"):
        return replace(linear, outputs=_kv_heads(shape, tensor) * shape.head_dim)
    return replace(linear, outputs=math.ceil(linear.outputs / tensor))


def _kv_heads(shape: ModelShape, tensor: int) -> int:
    return max(1, math.ceil(shape.kv_heads / tensor))


def _padded_vocabulary(shape: ModelShape) -> int:
    return math.ceil(shape.vocabulary / _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def _activations(shape: ModelShape, split: Split, demand: Demand, *, is_large_gpu: bool) -> int:
    """The most that one pass holds at once: of a feed-forward layer or an attention, or of the logits."""
    tokens = demand.batched_tokens or _BATCHED_TOKENS * (2 if is_large_gpu else 1)
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    widest = max((2 + shape.gated_mlp) * shape.intermediate, attention) / split.tensor
    passing = tokens * (_HIDDEN_COPIES * shape.hidden + widest) * demand.compute_bytes
    return int(max(passing, min(tokens, LOGITS_ROWS) * shape.vocabulary * LOGITS_BYTES))


def large(memory_gib: float, name: str) -> bool:
    """Whether vLLM computes more tokens at once on that GPU; not so on an A100, however large (vLLM, #17885)."""
    return memory_gib >= _LARGE_GPU_GIB and not name.startswith("A100")
