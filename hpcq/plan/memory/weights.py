"""Bytes of a variant's weights, tensor by tensor, as compressed-tensors 0.19, AutoGPTQ and AutoAWQ store them."""

from __future__ import annotations

import math
from functools import lru_cache

from hpcq.catalog.checkpoint_formats import CheckpointFormat
from hpcq.catalog.model_shape import Block, Linear, ModelShape
from hpcq.catalog.number_formats import BITS, GROUP_SIZES, STATIC_GLOBAL_SCALE
from hpcq.catalog.number_formats import UNQUANTIZED as _UNQUANTIZED
from hpcq.catalog.schemes import has_uniform_blocks, is_ignored
from hpcq.core.work_records import Scheme

GIB = 2**30
VALUE_BYTES = 2
"""Bytes per number that is not quantized, such as scales, when a quantized model is evaluated: a 16-bit type."""

_WORD_BITS = 32
_FLOAT32_BYTES = 4
_INDEX_BYTES = 4


@lru_cache(maxsize=4096)
def weight_bytes(shape: ModelShape, scheme: Scheme, value: int | None = None) -> int:
    """Return the bytes of a checkpoint's tensors, without the safetensors headers.

    A quantized checkpoint has its linear layers in the scheme's format, with scales and zero points, and the rest in
    `value` bytes per number. A base checkpoint has everything in the scheme's format.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights.
        value: Bytes per number that is not quantized; None: as the numbers are computed (`value_bytes`).
    """
    value = value or value_bytes(scheme)
    outside = embedding_bytes(shape, value) + outside_bytes(shape, scheme, value)
    if has_uniform_blocks(scheme):
        firsts = (shape.pattern.index(kind) for kind in range(len(shape.kinds)))
        return outside + sum(
            count * block_bytes(shape, scheme, first, value=value)
            for first, (_, count) in zip(firsts, shape.counts, strict=True)
        )
    return outside + sum(block_bytes(shape, scheme, index, value=value) for index in range(shape.layers))


def checkpoint_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Return the bytes on disk: of a base checkpoint, those of its files; hpcq writes the base's type.

    A checkpoint of bitsandbytes has links to the weights of the base.
    """
    if scheme.checkpoint_format == CheckpointFormat.BITSANDBYTES:
        return 0
    if scheme.is_quantized:
        return weight_bytes(shape, scheme, shape.value_bytes)
    return base_bytes(shape)


def base_bytes(shape: ModelShape) -> int:
    """Return the bytes of a base checkpoint's tensors."""
    return shape.checkpoint_bytes or shape.parameters * shape.value_bytes


def value_bytes(scheme: Scheme) -> int:
    """Return the bytes per unquantized number."""
    return VALUE_BYTES if scheme.is_quantized else BITS[scheme.weights] // 8


def embedding_bytes(shape: ModelShape, value: int) -> int:
    """Return the bytes of the embeddings, which no scheme quantizes."""
    return shape.vocab_size * shape.embedding_size * value


def outside_bytes(shape: ModelShape, scheme: Scheme, value: int) -> int:
    """Return the bytes outside blocks and embeddings: last norm, learned positions, an untied head."""
    return shape.other * value + sum(outside_linear_bytes(one, scheme, value) for one in shape.linears)


def outside_linear_bytes(linear: Linear, scheme: Scheme, value: int | None = None) -> int:
    """Return the bytes of a linear layer outside the blocks. A scheme quantizes the head unless it ignores it."""
    return linear_bytes(linear, scheme, is_ignored=is_ignored(linear.name, scheme), value=value)


def block_bytes(
    shape: ModelShape, scheme: Scheme, index: int, part: Block | None = None, *, value: int | None = None
) -> int:
    """Return the bytes of one block.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights.
        index: Index of the block.
        part: The part of the block on one GPU; None: all of it.
        value: As for `weight_bytes`.
    """
    block, value = part or shape.kinds[shape.pattern[index]], value or value_bytes(scheme)
    linears = sum(
        count
        * linear_bytes(linear, scheme, is_ignored=is_ignored(shape.linear_name(index, linear), scheme), value=value)
        for count, group in block.groups
        for linear in group
    )
    cache_scales = 2 if scheme.kv_cache and block.attention else 0  # of keys and of values
    return (block.other + block.buffers + cache_scales) * value + block.float32 * _FLOAT32_BYTES + linears


def part_bytes(shape: ModelShape, scheme: Scheme) -> list[int]:
    """Return the bytes of the parts that are not split further, in the model's order: embeddings, blocks, norm, head.

    A tied head is in the same part as the embeddings.
    """
    value = value_bytes(scheme)
    blocks = [block_bytes(shape, scheme, index) for index in range(shape.layers)]
    outside = [outside_linear_bytes(linear, scheme) for linear in shape.linears]
    return [embedding_bytes(shape, value), *blocks, shape.other * value, *outside]


def linear_bytes(linear: Linear, scheme: Scheme, *, is_ignored: bool = False, value: int | None = None) -> int:
    """Return the bytes of a linear layer: weights, scales, zero points, bias.

    A layer of packed integers also stores its shape, and a layer with static activations its input scale. The scales of
    NVFP4, MXFP4 and MXFP8 have one byte; NVFP4 has one scale in float32 for the weights, and one for activations.
    """
    value = value or value_bytes(scheme)
    bias = linear.out_features * value if linear.has_bias else 0
    if not scheme.is_quantized or is_ignored or not linear.is_quantizable:
        return linear.weights * value + bias
    if scheme.checkpoint_format in (CheckpointFormat.GPTQ, CheckpointFormat.AWQ):
        return _packed_tool_bytes(linear, scheme) + bias
    is_packed = scheme.weights.startswith("int") and (
        scheme.activations in _UNQUANTIZED or (scheme.weights == "int4" and scheme.activations == "fp8_e4m3")
    )
    # With activations in integers, integer weights take one byte each, even if they have fewer bits.
    bits = BITS[scheme.weights] if is_packed or not scheme.weights.startswith("int") else 8
    rows, columns = _scales(linear, scheme)
    weights = linear.out_features * (_words(linear.in_features, bits) if is_packed else linear.in_features * bits // 8)
    original_shape = 2 * 8 if is_packed else 0
    zero_points = 0
    if not scheme.symmetric:
        zero_points = columns * _words(rows, bits) if is_packed else columns * rows
    is_static = scheme.activations not in _UNQUANTIZED and not scheme.dynamic
    scale_bytes = 1 if scheme.weights in GROUP_SIZES else value
    global_scales = (scheme.weights in STATIC_GLOBAL_SCALE) + (scheme.activations in STATIC_GLOBAL_SCALE)
    scales = rows * columns * scale_bytes + is_static * value + global_scales * _FLOAT32_BYTES
    return weights + scales + zero_points + original_shape + bias


def _packed_tool_bytes(linear: Linear, scheme: Scheme) -> int:
    """Return the bytes of a layer in the format of AutoGPTQ or AutoAWQ, without its bias.

    Both have zero points, also of symmetric weights, and scales in 16 bits. AutoGPTQ has the group of each input.
    """
    bits, rows, columns = BITS[scheme.weights], linear.in_features, linear.out_features
    groups = math.ceil(rows / (scheme.group_size or rows))
    index = rows * _INDEX_BYTES if scheme.checkpoint_format == CheckpointFormat.GPTQ else 0
    return _words(rows, bits) * columns + groups * (_words(columns, bits) + columns * VALUE_BYTES) + index


def gib(count: float) -> float:
    """Return bytes as GiB, rounded to two decimals."""
    return round(count / GIB, 2)


def _scales(linear: Linear, scheme: Scheme) -> tuple[int, int]:
    """Return the rows and columns of the weights' scales."""
    match scheme.granularity:
        case "tensor":
            return 1, 1
        case "block":
            size = scheme.group_size or linear.in_features
            return math.ceil(linear.out_features / size), math.ceil(linear.in_features / size)
        case "group":
            return linear.out_features, math.ceil(linear.in_features / (scheme.group_size or linear.in_features))
        case _:
            return linear.out_features, 1


def _words(numbers: int, bits: int) -> int:
    """Return the bytes of `numbers` numbers of `bits` bits each, packed into words."""
    return math.ceil(numbers * bits / _WORD_BITS) * (_WORD_BITS // 8)
