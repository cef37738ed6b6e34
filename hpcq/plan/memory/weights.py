"""What a variant's weights take, tensor by tensor, as compressed-tensors 0.19 stores them.

Knows shapes and schemes; knows no GPU, and no way to split a model.
"""

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
"""Of whatever is not quantized beside what is, scales among it: a checkpoint's own 16-bit type."""

_UNQUANTIZED = ("fp32", "bf16", "fp16")
_WORD_BITS = 32
_HEAD = "lm_head"


@lru_cache(maxsize=4096)
def weight_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Bytes of a variant's checkpoint, but for its headers: they are the names of the tensors, once or twice a layer.

    Quantized: linear layers in the scheme's format with what it needs to read them, the rest in 16 bits. A base
    checkpoint has everything in the scheme's own format.
    """
    value = value_bytes(scheme)
    ends = embedding_bytes(shape, value) + shape.hidden * value
    if not shape.tied_embeddings:
        ends += head_bytes(shape, scheme)
    if blocks_are_alike(scheme):
        return ends + shape.layers * block_bytes(shape, scheme, 0)
    return ends + sum(block_bytes(shape, scheme, block) for block in range(shape.layers))


def value_bytes(scheme: Scheme) -> int:
    """Bytes of a number that is not quantized."""
    return VALUE_BYTES if scheme.is_quantized else BITS[scheme.weights] // 8


def embedding_bytes(shape: ModelShape, value: int) -> int:
    """Of the embeddings, which no scheme quantizes."""
    return shape.vocabulary * shape.hidden * value


def head_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Of a head of its own, which a scheme quantizes unless it ignores it."""
    head = Linear(name=_HEAD, inputs=shape.hidden, outputs=shape.vocabulary)
    return linear_bytes(head, scheme, is_ignored=is_ignored(_HEAD, scheme))


def block_bytes(shape: ModelShape, scheme: Scheme, block: int, linears: Iterable[Linear] | None = None) -> int:
    """Of block number `block`: its linear layers (or the parts of them in `linears`) and its two norms."""
    chosen = shape.linears if linears is None else linears
    return 2 * shape.hidden * value_bytes(scheme) + sum(
        linear_bytes(linear, scheme, is_ignored=is_ignored(f"model.layers.{block}.{linear.name}", scheme))
        for linear in chosen
    )


def blocks_are_alike(scheme: Scheme) -> bool:
    """Whether what the scheme ignores is the head alone."""
    return not scheme.is_quantized or set(scheme.ignore) <= {_HEAD}


def is_ignored(name: str, scheme: Scheme) -> bool:
    """Whether the scheme leaves the layer of that name as it is: by its name, or by 're:' and a pattern."""
    return any(
        re.match(entry[3:], name) is not None if entry.startswith("re:") else entry == name for entry in scheme.ignore
    )


def linear_bytes(linear: Linear, scheme: Scheme, *, is_ignored: bool = False) -> int:
    """Of a linear layer: weights, scales, zero points, its shape where it is packed, a static input scale, the bias."""
    value = value_bytes(scheme)
    bias = linear.outputs * value if linear.has_bias else 0
    if not scheme.is_quantized or is_ignored:
        return linear.inputs * linear.outputs * value + bias
    is_packed = scheme.weights.startswith("int") and scheme.activations in _UNQUANTIZED
    # Activations that are quantized, too, are multiplied by weights of a byte each, however few bits those need.
    bits = BITS[scheme.weights] if is_packed else 8
    rows, columns = _scales(linear, scheme)
    weights = linear.outputs * (_words(linear.inputs, bits) if is_packed else linear.inputs)
    original_shape = 2 * 8 if is_packed else 0
    zero_points = 0
    if not scheme.symmetric:
        zero_points = columns * _words(rows, bits) if is_packed else columns * rows
    is_static = scheme.activations not in _UNQUANTIZED and not scheme.dynamic
    return weights + (rows * columns + is_static) * VALUE_BYTES + zero_points + original_shape + bias


def gib(count: float) -> float:
    """Bytes as GiB, to two decimals."""
    return round(count / GIB, 2)


def _scales(linear: Linear, scheme: Scheme) -> tuple[int, int]:
    """Rows and columns of the weights' scales."""
    match scheme.granularity:
        case "tensor":
            return 1, 1
        case "group":
            return linear.outputs, math.ceil(linear.inputs / (scheme.group_size or linear.inputs))
        case _:
            return linear.outputs, 1


def _words(numbers: int, bits: int) -> int:
    """Bytes of so many numbers of so many bits, packed into words."""
    return math.ceil(numbers * bits / _WORD_BITS) * (_WORD_BITS // 8)
