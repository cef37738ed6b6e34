"""Bytes of a variant's weights, tensor by tensor, as compressed-tensors 0.19 stores them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from hpcq.catalog.models import Linear, ModelShape
from hpcq.core.work import Scheme

GIB = 2**30
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8_e4m3": 8, "int8": 8, "int4": 4}
VALUE_BYTES = 2
"""Bytes per number in a quantized checkpoint that is not quantized, such as scales: the checkpoint's 16-bit type."""

_UNQUANTIZED = ("fp32", "bf16", "fp16")
_WORD_BITS = 32
_HEAD = "lm_head"


@lru_cache(maxsize=4096)
def weight_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Return the bytes of a checkpoint's tensors, without the safetensors headers.

    A quantized checkpoint has its linear layers in the scheme's format, with scales and zero points, and the rest in 16
    bits. A base checkpoint has everything in the scheme's format.
    """
    value = value_bytes(scheme)
    outside = embedding_bytes(shape, value) + shape.hidden_size * value
    if not shape.tied_embeddings:
        outside += head_bytes(shape, scheme)
    if has_uniform_blocks(scheme):
        return outside + shape.layers * block_bytes(shape, scheme, 0)
    return outside + sum(block_bytes(shape, scheme, block) for block in range(shape.layers))


def value_bytes(scheme: Scheme) -> int:
    """Return the bytes per unquantized number."""
    return VALUE_BYTES if scheme.is_quantized else BITS[scheme.weights] // 8


def embedding_bytes(shape: ModelShape, value: int) -> int:
    """Return the bytes of the embeddings, which no scheme quantizes."""
    return shape.vocab_size * shape.hidden_size * value


def head_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Return the bytes of an untied head. A scheme quantizes it unless it ignores it."""
    head = Linear(name=_HEAD, in_features=shape.hidden_size, out_features=shape.vocab_size)
    return linear_bytes(head, scheme, is_ignored=is_ignored(_HEAD, scheme))


def block_bytes(shape: ModelShape, scheme: Scheme, block: int, linears: Iterable[Linear] | None = None) -> int:
    """Return the bytes of one block: its linear layers and its two norms.

    Args:
        shape: Sizes of the model.
        scheme: Scheme of the weights.
        block: Index of the block.
        linears: The linear layers, or the part of each on one GPU; None: the model's.
    """
    chosen = shape.linears if linears is None else linears
    return 2 * shape.hidden_size * value_bytes(scheme) + sum(
        linear_bytes(linear, scheme, is_ignored=is_ignored(f"model.layers.{block}.{linear.name}", scheme))
        for linear in chosen
    )


def part_bytes(shape: ModelShape, scheme: Scheme) -> list[int]:
    """Return the bytes of the parts that are not split further, in the model's order: embeddings, blocks, norm, head.

    A tied head is in the same part as the embeddings.
    """
    value = value_bytes(scheme)
    blocks = [block_bytes(shape, scheme, block) for block in range(shape.layers)]
    head = [] if shape.tied_embeddings else [head_bytes(shape, scheme)]
    return [embedding_bytes(shape, value), *blocks, shape.hidden_size * value, *head]


def has_uniform_blocks(scheme: Scheme) -> bool:
    """Return whether the scheme treats all blocks alike: it ignores at most the head."""
    return not scheme.is_quantized or set(scheme.ignore) <= {_HEAD}


def is_ignored(name: str, scheme: Scheme) -> bool:
    """Return whether the scheme does not quantize the named layer. It lists names, and patterns after "re:"."""
    return any(
        re.match(entry[3:], name) is not None if entry.startswith("re:") else entry == name for entry in scheme.ignore
    )


def linear_bytes(linear: Linear, scheme: Scheme, *, is_ignored: bool = False) -> int:
    """Return the bytes of a linear layer: weights, scales, zero points, bias.

    A packed layer also stores its shape, and a layer with static activations its input scale.
    """
    value = value_bytes(scheme)
    bias = linear.out_features * value if linear.has_bias else 0
    if not scheme.is_quantized or is_ignored:
        return linear.in_features * linear.out_features * value + bias
    is_packed = scheme.weights.startswith("int") and scheme.activations in _UNQUANTIZED
    # With quantized activations, weights take one byte each, even if they have fewer bits.
    bits = BITS[scheme.weights] if is_packed else 8
    rows, columns = _scales(linear, scheme)
    weights = linear.out_features * (_words(linear.in_features, bits) if is_packed else linear.in_features)
    original_shape = 2 * 8 if is_packed else 0
    zero_points = 0
    if not scheme.symmetric:
        zero_points = columns * _words(rows, bits) if is_packed else columns * rows
    is_static = scheme.activations not in _UNQUANTIZED and not scheme.dynamic
    return weights + (rows * columns + is_static) * VALUE_BYTES + zero_points + original_shape + bias


def gib(count: float) -> float:
    """Return bytes as GiB, rounded to two decimals."""
    return round(count / GIB, 2)


def _scales(linear: Linear, scheme: Scheme) -> tuple[int, int]:
    """Return the rows and columns of the weights' scales."""
    match scheme.granularity:
        case "tensor":
            return 1, 1
        case "group":
            return linear.out_features, math.ceil(linear.in_features / (scheme.group_size or linear.in_features))
        case _:
            return linear.out_features, 1


def _words(numbers: int, bits: int) -> int:
    """Return the bytes of `numbers` numbers of `bits` bits each, packed into words."""
    return math.ceil(numbers * bits / _WORD_BITS) * (_WORD_BITS // 8)
