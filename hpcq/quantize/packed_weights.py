"""Weights of GPTQ, AWQ and FP8 checkpoints as floating-point numbers, and rounding of activations to FP8 and INT8.

Formulas, with q the stored integers, s the scales, z the zero points (of the group of an input):

GPTQ: weight[out, in] = s[group(in), out] * (q[in, out] - z[group(in), out]). Integers are a stream of bits, packed
along the inputs (qweight) or the outputs (qzeros), the lowest bit first. The format `gptq` stores z - 1,
`gptq_v2` stores z.

AWQ (gemm): the same, with eight 4-bit integers per word along the outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7.

FP8: weight = s * q, with one scale per tensor, per output, or per block of outputs and inputs.
"""

from __future__ import annotations

import torch

_WORD_BITS = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that is stored at each position of a word."""
_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max
_MIN_SCALE = 1e-12
"""Prevents a division by zero for tokens that are all zero."""


class PackedWeightsError(ValueError):
    """Stored weights contradict the checkpoint's configuration."""


def unpack(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return the integers that are packed as a stream of bits along `dim`, the lowest bit first.

    Args:
        words: Words of 32 bits, two dimensions.
        bits: Bits per integer.
        dim: Dimension along which they are packed.
    """
    packed = (words if dim == 0 else words.T).to(torch.int64) & (2**_WORD_BITS - 1)
    positions = torch.arange(packed.shape[0] * _WORD_BITS // bits, device=words.device) * bits
    first, offset = positions // _WORD_BITS, (positions % _WORD_BITS).unsqueeze(1)
    following = torch.cat([packed, torch.zeros_like(packed[:1])])[first + 1]  # an integer may continue in the next word
    found = (((following << _WORD_BITS) | packed[first]) >> offset) & (2**bits - 1)
    return (found if dim == 0 else found.T).to(torch.int32)


def pack(integers: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Return words of 32 bits with `integers` as a stream of bits along `dim`: the inverse of `unpack`.

    Args:
        integers: Integers from 0 to 2**bits - 1, two dimensions. Those along `dim` must fill whole words.
        bits: Bits per integer.
        dim: Dimension along which they are packed.
    """
    rows = (integers if dim == 0 else integers.T).to(torch.int64)
    stream = ((rows.unsqueeze(1) >> torch.arange(bits, device=rows.device).reshape(1, -1, 1)) & 1).flatten(0, 1)
    words = stream.unflatten(0, (-1, _WORD_BITS))
    packed = (words << torch.arange(_WORD_BITS, device=rows.device).reshape(1, -1, 1)).sum(1)
    signed = torch.where(packed >= 2 ** (_WORD_BITS - 1), packed - 2**_WORD_BITS, packed).to(torch.int32)
    return (signed if dim == 0 else signed.T).contiguous()


def gptq_weight(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None,
    *,
    bits: int,
    is_v2: bool,
    is_symmetric: bool,
) -> torch.Tensor:
    """Return the weight of a GPTQ layer in float32, [outputs, inputs].

    Args:
        qweight: Packed integers, [inputs * bits / 32, outputs].
        qzeros: Packed zero points, [groups, outputs * bits / 32].
        scales: Scales, [groups, outputs].
        g_idx: Group of each input; None: groups of consecutive inputs.
        bits: Bits per integer.
        is_v2: Zero points are stored as they are; False: minus one.
        is_symmetric: All zero points are half of the range.

    Raises:
        PackedWeightsError: Zero points are ambiguous or not symmetric, or shapes do not match.
    """
    weights, groups = unpack(qweight, bits, 0), scales.shape[0]
    zeros = unpack(qzeros, bits, 1)
    if zeros.shape != scales.shape or weights.shape[1] != scales.shape[1]:
        raise PackedWeightsError(f"the shapes of qweight, qzeros and scales do not match for {bits} bits")
    if not is_v2:
        if not is_symmetric and bool((zeros == 2**bits - 1).any()):
            # -1 as an unsigned number, or the zero point 2**bits: tools disagree.
            raise PackedWeightsError("a stored zero point is ambiguous: export the checkpoint as gptq_v2")
        zeros = zeros + 1
    if is_symmetric and not bool((zeros == 2 ** (bits - 1)).all()):
        raise PackedWeightsError("zero points are not symmetric, or stored in the other version of the format")
    if g_idx is None:
        g_idx = torch.arange(weights.shape[0], device=weights.device) // -(-weights.shape[0] // groups)
    index = g_idx.long()
    return (scales.float()[index] * (weights - zeros[index])).T.contiguous()


def awq_weight(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the weight of an AWQ layer (gemm, 4 bits) in float32, [outputs, inputs].

    Args:
        qweight: Packed integers, [inputs, outputs / 8].
        qzeros: Packed zero points, [groups, outputs / 8].
        scales: Scales, [groups, outputs].

    Raises:
        PackedWeightsError: Shapes do not match.
    """
    weights, zeros = _unpack_awq(qweight), _unpack_awq(qzeros)
    if zeros.shape != scales.shape or weights.shape[1] != scales.shape[1] or weights.shape[0] % scales.shape[0]:
        raise PackedWeightsError("the shapes of qweight, qzeros and scales do not match")
    size = weights.shape[0] // scales.shape[0]
    zero_of_input, scale_of_input = (each.repeat_interleave(size, 0) for each in (zeros, scales.float()))
    return (scale_of_input * (weights - zero_of_input)).T.contiguous()


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(0, _WORD_BITS, 4, device=words.device)
    stored = (words.unsqueeze(-1) >> shifts) & 15
    order = torch.tensor(_AWQ_ORDER, device=words.device).argsort()
    return stored[..., order].reshape(words.shape[0], -1).to(torch.int32)


def fp8_weight(weight: torch.Tensor, scale: torch.Tensor, block_size: int | None) -> torch.Tensor:
    """Return an FP8 weight [outputs, inputs] in float32.

    Args:
        weight: The weight.
        scale: Its scale: one number, one per output, or one per block.
        block_size: Outputs and inputs of a block; None: no blocks.

    Raises:
        PackedWeightsError: Shapes do not match.
    """
    outputs, inputs = weight.shape
    if block_size is not None:
        expected = (-(-outputs // block_size), -(-inputs // block_size))
        if tuple(scale.shape) != expected:
            raise PackedWeightsError(f"the scales have the shape {tuple(scale.shape)}, not {expected}")
        scale = scale.float().repeat_interleave(block_size, 0)[:outputs].repeat_interleave(block_size, 1)[:, :inputs]
    elif scale.numel() == 1:
        scale = scale.float().reshape(1, 1)
    elif scale.numel() == outputs:
        scale = scale.float().reshape(outputs, 1)
    else:
        raise PackedWeightsError(f"the scales have the shape {tuple(scale.shape)} for {outputs} outputs")
    return weight.float() * scale


def round_to_int8(activations: torch.Tensor, *, divisor: float = 127) -> torch.Tensor:
    """Return activations as INT8 kernels round them, with one symmetric scale per token, in their own type.

    Scales and integers are computed in float32, and ties are rounded to even.

    Args:
        activations: Activations, [..., features].
        divisor: Number by which the largest absolute value of a token is divided for its scale.
    """
    values = activations.float()
    scale = (values.abs().amax(-1, keepdim=True) / divisor).clamp(min=_MIN_SCALE)
    rounded = (values / scale).round().clamp(-128, 127) * scale
    return rounded.to(activations.dtype)


def round_activations(
    activations: torch.Tensor,
    *,
    group_size: int | None = None,
    scale: torch.Tensor | None = None,
    upper_bound: float | None = None,
    is_power_of_two: bool = False,
) -> torch.Tensor:
    """Return activations as FP8 (E4M3) stores them, in their own type.

    Args:
        activations: Activations, [..., features].
        group_size: Features per scale; None: one scale per token.
        scale: Static scale; None: the scale follows from the largest absolute value.
        upper_bound: Larger absolute values are clipped.
        is_power_of_two: Scales are rounded up to powers of two.

    Raises:
        PackedWeightsError: The group size does not divide the features.
    """
    values = activations.float()
    if group_size is not None:
        if values.shape[-1] % group_size:
            raise PackedWeightsError(f"{values.shape[-1]} features are not a multiple of {group_size}")
        values = values.unflatten(-1, (-1, group_size))
    if scale is None:
        largest = values.abs().amax(-1, keepdim=True)
        scale = (largest if upper_bound is None else largest.clamp(max=upper_bound)) / _FP8_MAX
        scale = scale.clamp(min=_MIN_SCALE)
        if is_power_of_two:
            scale = scale.log2().ceil().exp2()
    rounded = (values / scale).clamp(-_FP8_MAX, _FP8_MAX).to(_FP8).float() * scale
    return rounded.reshape(activations.shape).to(activations.dtype)
