"""Tensors of a quantized layer in a checkpoint, and its weights in float32, by the definition of each number format.

compressed-tensors and transformers are not used: this is the second computation with which theirs is compared.

Formulas, with q the stored number, s the scale of its tensor, output, group or block:

- FP8 (OCP 8-bit floating point, E4M3): weight = s * q.
- Integers: weight = s * (q - z), with the zero point z (0 if symmetric). Packed integers are in words of 32 bits, the
  first in the lowest bits, with an offset of half of their range; zero points the same along the outputs.
- NVFP4: weight = q * s / g, with s in E4M3 and one g in float32 per tensor. q is E2M1 (1 sign bit, 2 exponent bits, 1
  mantissa bit), two per byte, the first in the lower half.
- MXFP4 and MXFP8 (OCP Microscaling Formats 1.0): weight = q * 2**(e - 127), with one byte e per group; 255 is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpcq.catalog.number_formats import BITS, UNQUANTIZED
from hpcq.core.work_records import Scheme

Layout = Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]
"""Types (as safetensors files name them) that a tensor may have, and its shape, by the last part of its name."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the numbers with 1 sign bit, 2 exponent bits and 1 mantissa bit, without sign."""
_WORD_BITS = 32
_E8M0_BIAS, _E8M0_NAN = 127, 255
_PLAIN = ("F32", "BF16", "F16")


class StoredLayerError(ValueError):
    """Stored numbers that the format does not allow, as the end of a sentence."""


def is_packed(scheme: Scheme) -> bool:
    """Return whether several integers share a word. With activations in integers, each weight takes one byte."""
    is_w4a8 = scheme.weights == "int4" and scheme.activations == "fp8_e4m3"
    return scheme.weights.startswith("int") and (scheme.activations in UNQUANTIZED or is_w4a8)


def layout_of(scheme: Scheme, outputs: int, inputs: int) -> Layout:
    """Return the tensors of a layer with `outputs` x `inputs` weights, without its bias."""
    rows, columns = _scale_shape(scheme, outputs, inputs)
    scale_shape = (1,) if scheme.granularity == "tensor" else (rows, columns)
    layout: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    match scheme.weights:
        case "nvfp4" | "mxfp4":
            layout["weight_packed"] = (("U8",), (outputs, inputs // 2))
        case "fp8_e4m3" | "mxfp8":
            layout["weight"] = (("F8_E4M3",), (outputs, inputs))
        case _ if is_packed(scheme):
            layout["weight_packed"] = (("I32",), (outputs, _words(inputs, BITS[scheme.weights])))
            layout["weight_shape"] = (("I64",), (2,))
        case _:
            layout["weight"] = (("I8",), (outputs, inputs))
    layout["weight_scale"] = (
        {"nvfp4": ("F8_E4M3",), "mxfp4": ("U8",), "mxfp8": ("U8",)}.get(scheme.weights, _PLAIN),
        scale_shape,
    )
    if scheme.weights == "nvfp4":
        layout["weight_global_scale"] = (("F32",), (1,))
    if not scheme.symmetric:
        packed_rows = _words(rows, BITS[scheme.weights])
        layout["weight_zero_point"] = (
            (("I32",), (packed_rows, columns)) if is_packed(scheme) else (("I8",), scale_shape)
        )
    if scheme.activations == "nvfp4":
        layout["input_global_scale"] = (("F32",), (1,))
    elif scheme.activations not in UNQUANTIZED and not scheme.dynamic:
        layout["input_scale"] = (_PLAIN, (1,))
    return layout


def dequantize(scheme: Scheme, tensors: Mapping[str, Any], outputs: int, inputs: int) -> Any:
    """Return the weights of a layer in float32, [outputs, inputs].

    Args:
        scheme: How it is quantized.
        tensors: Its tensors, as `layout_of` describes them, by the last part of their names.
        outputs: Outputs of the layer.
        inputs: Inputs of the layer.

    Raises:
        StoredLayerError: A scale is not a positive finite number, or integers exceed their range.
    """
    scale = _scales(scheme, tensors)
    match scheme.weights:
        case "nvfp4" | "mxfp4":
            steps = _e2m1(tensors["weight_packed"])
        case _ if is_packed(scheme):
            bits = BITS[scheme.weights]
            if tensors["weight_shape"].tolist() != [outputs, inputs]:
                raise StoredLayerError(f"weight_shape is {tensors['weight_shape'].tolist()}, not [{outputs}, {inputs}]")
            steps = _unpacked(tensors["weight_packed"], bits)[:, :inputs]
            if not scheme.symmetric:
                zeros = _unpacked(tensors["weight_zero_point"].T, bits)[:, : scale.shape[0]].T
                steps = steps - _spread(scheme, zeros, outputs, inputs)
        case _:
            steps = tensors["weight"].float()
            if not scheme.symmetric:
                steps = steps - _spread(scheme, tensors["weight_zero_point"].float(), outputs, inputs)
    return steps * _spread(scheme, scale, outputs, inputs)


def _scale_shape(scheme: Scheme, outputs: int, inputs: int) -> tuple[int, int]:
    size = scheme.group_size or inputs
    match scheme.granularity:
        case "tensor":
            return 1, 1
        case "block":
            return math.ceil(outputs / size), math.ceil(inputs / size)
        case "group":
            return outputs, math.ceil(inputs / size)
        case _:
            return outputs, 1


def _scales(scheme: Scheme, tensors: Mapping[str, Any]) -> Any:
    """Return the scales in float32, including those of the tensor. All scales of the layer are checked."""
    import torch

    for name, values in tensors.items():
        if name.endswith("_scale") and values.dtype != torch.uint8:
            numbers = values.float()
            if not bool((numbers.isfinite() & (numbers > 0)).all()):
                raise StoredLayerError(f"{name} is not a positive finite number everywhere")
    stored = tensors["weight_scale"]
    if scheme.weights in ("mxfp4", "mxfp8"):
        if bool((stored == _E8M0_NAN).any()):
            raise StoredLayerError("weight_scale is NaN somewhere")
        return torch.exp2(stored.float() - _E8M0_BIAS)
    if scheme.weights == "nvfp4":
        return stored.float() / tensors["weight_global_scale"]
    return stored.float().reshape(-1, 1) if scheme.granularity == "tensor" else stored.float()


def _spread(scheme: Scheme, values: Any, outputs: int, inputs: int) -> Any:
    """Return numbers per tensor, output, group or block as numbers per weight, or in a shape that is broadcast."""
    size = scheme.group_size or inputs
    if scheme.granularity == "block":
        values = values.repeat_interleave(size, 0)[:outputs]
    if scheme.granularity in ("block", "group"):
        values = values.repeat_interleave(size, 1)[:, :inputs]
    return values


def _e2m1(packed: Any) -> Any:
    import torch

    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()
    values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    return values[codes]


def _unpacked(words: Any, bits: int) -> Any:
    """Return signed integers that are packed into words along the last dimension, as float32."""
    import torch

    shifts = torch.arange(0, _WORD_BITS - _WORD_BITS % bits, bits)
    fields = (words.to(torch.int64).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return (fields.flatten(-2) - 2 ** (bits - 1)).float()


def _words(numbers: int, bits: int) -> int:
    """Return the words of 32 bits that hold `numbers` numbers. A number is not split over two words."""
    return math.ceil(numbers / (_WORD_BITS // bits))
