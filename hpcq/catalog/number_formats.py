"""Number formats of quantized weights and activations: bits, and the sizes of their groups where the format fixes them.

Sources: Open Compute Project, "OCP Microscaling Formats (MX) Specification" 1.0, for MXFP4 and MXFP8 (groups of 32, one
power of two per group); NVIDIA's documentation of cuDNN's block scaling and the presets of compressed-tensors 0.19
(quant_scheme.py) for NVFP4 (groups of 16, scales in E4M3, and one float32 scale per tensor).
"""

from __future__ import annotations

UNQUANTIZED = ("fp32", "bf16", "fp16")
"""Formats of numbers that are not quantized."""

BITS = {
    "fp32": 32,
    "bf16": 16,
    "fp16": 16,
    "fp8_e4m3": 8,
    "mxfp8": 8,
    "int8": 8,
    "int4": 4,
    "int3": 3,
    "int2": 2,
    "nvfp4": 4,
    "mxfp4": 4,
    "nf4": 4,
    "fp4": 4,
}
"""Bits per number, without scales. int3, int2, nf4 and fp4 are only in checkpoints of others."""

GROUP_SIZES = {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32}
"""Numbers per scale that the format fixes. Activations have groups of the same size, with scales of each token."""

STATIC_GLOBAL_SCALE = ("nvfp4",)
"""Formats with one more scale per tensor: that of activations is static, so it is calibrated."""
