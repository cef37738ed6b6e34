"""Cost model of a quantization: seconds to read, calibrate, quantize each layer and write.

Follows llmcompressor 0.14, which processes a model block by block on one GPU.
"""

from __future__ import annotations

from hpcq.catalog.model_shape import Block, Linear, ModelShape
from hpcq.catalog.tools import quantizers
from hpcq.core.work_records import Calibration, Scheme
from hpcq.plan.cost import constants
from hpcq.plan.cost.evaluation import Cost, Hardware, cpu_flops, gpu_flops, read_seconds, token_flops
from hpcq.plan.memory.weights import base_bytes, checkpoint_bytes

_GIGA = 10**9
_PASSES = 2
"""Passes through every block: one calibrates, one computes the next block's inputs."""

_CHOLESKY_FLOPS = 3
"""Times n³: factor, inverse, factor of the inverse (1/3 + 2/3 + 1/3 multiply-adds of 2 FLOPs, rounded up)."""


def quantization_cost(model: ModelShape, scheme: Scheme, calibration: Calibration | None, hardware: Hardware) -> Cost:
    """Estimate the seconds in which one checkpoint is quantized."""
    base = base_bytes(model)
    tokens = calibration.samples * calibration.sequence_length if calibration and scheme.needs_calibration else 0
    length = calibration.sequence_length if calibration else 0
    gpu, cores = hardware.gpu, hardware.cores
    pass_flops = gpu_flops(gpu, "bfloat16") * constants.QUANTIZE_EFFICIENCY if gpu else cpu_flops("float32", cores)
    float32_flops = gpu_flops(gpu, "float32") if gpu else cpu_flops("float32", cores)
    # llmcompressor calibrates every expert with all tokens.
    token = token_flops(model, length, with_logits=False, with_all_experts=True)
    work = _PASSES * tokens * token / pass_flops
    if scheme.method in ("gptq", "smoothquant") and tokens:
        work += sum(count * _gptq_block_s(block, tokens, float32_flops) for block, count in model.counts)
    if scheme.method == "awq":
        work += constants.AWQ_TRIALS * tokens * token / pass_flops
    if gpu:
        work += 2 * _PASSES * base / (constants.HOST_LINK_GB_PER_S * _GIGA)
    work += read_seconds(checkpoint_bytes(model, scheme), hardware)
    return Cost(start_s=quantizers()[scheme.tool].startup_s, load_s=read_seconds(base, hardware), work_s=work)


def _gptq_block_s(block: Block, tokens: int, float32_flops: float) -> float:
    """Return the seconds of GPTQ on one block, with every expert."""
    return sum(
        count * sum(_gptq_s(linear, tokens, float32_flops) for linear in linears if linear.is_quantizable)
        for count, linears in block.groups
    )


def _gptq_s(linear: Linear, tokens: int, float32_flops: float) -> float:
    """Return the seconds of GPTQ on one layer: Hessian of the inputs, its inverse, rounding with error propagation."""
    columns = linear.in_features
    hessian = 2 * tokens * columns**2
    inverse = _CHOLESKY_FLOPS * columns**3
    rounding = 2 * linear.out_features * columns**2
    return (hessian + inverse + rounding) / float32_flops + columns * constants.GPTQ_COLUMN_S
