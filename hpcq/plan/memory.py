"""First estimates of what a variant weighs: bytes of its weights, from the model's shape and the scheme's formats.

Activations, KV cache and the engine's own overhead are covered by one memory share; a finer model replaces this module.
"""

from __future__ import annotations

from hpcq.catalog.models import ModelShape
from hpcq.units import Scheme

BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8_e4m3": 1.0, "int8": 1.0, "int4": 0.5}
SCALE_BYTES = 2.0
"""A scale is stored in the model's own 16-bit type (compressed-tensors 0.19)."""
GIB = 2**30
WEIGHTS_SHARE = 0.85
"""Of a GPU's memory, what the weights may take: the rest is left to the KV cache, activations and the engine."""


def weight_bytes(shape: ModelShape, scheme: Scheme) -> int:
    """Bytes of a variant's weights.

    Quantized: the blocks' linear layers in the scheme's format with their scales, the rest in 16 bits.
    A base checkpoint has everything in the scheme's own format.
    """
    per_weight = BYTES_PER_WEIGHT[scheme.weights]
    if not scheme.is_quantized:
        return int(shape.parameters * per_weight)
    linear = shape.linear_parameters
    inputs_per_scale = scheme.group_size if scheme.granularity == "group" and scheme.group_size else shape.hidden
    return int(linear * (per_weight + SCALE_BYTES / inputs_per_scale) + (shape.parameters - linear) * SCALE_BYTES)


def gib(count: float) -> float:
    """Bytes as GiB, to two decimals."""
    return round(count / GIB, 2)
