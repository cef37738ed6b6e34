"""Seconds that making a checkpoint takes: reading, calibrating passes, what the method does to each layer, writing.

Knows how llmcompressor 0.14 goes through a model, block by block on one GPU; knows no cluster.
"""

from __future__ import annotations

from hpcq.catalog.models import Linear, ModelShape
from hpcq.core.work import Calibration, Scheme
from hpcq.plan.cost import constants
from hpcq.plan.cost.evaluation import Cost, Machine, cpu_flops, gpu_flops, load_s, token_flops
from hpcq.plan.memory.weights import VALUE_BYTES, weight_bytes

_GIGA = 10**9
_PASSES = 2
"""Through every block: one that calibrates, one that makes the next block's inputs."""

_CHOLESKY_FLOPS = 3
"""Times n³: factor, inverse, factor of the inverse (1/3 + 2/3 + 1/3, twice an operation each, rounded up)."""


def quantization_cost(model: ModelShape, scheme: Scheme, calibration: Calibration | None, machine: Machine) -> Cost:
    """What one checkpoint takes."""
    base = model.parameters * VALUE_BYTES
    start = constants.START_S["llmcompressor"]
    tokens = calibration.samples * calibration.sequence_length if calibration and scheme.needs_calibration else 0
    length = calibration.sequence_length if calibration else 0
    gpu = machine.gpu
    ordinary = gpu_flops(gpu, "bfloat16") * constants.QUANTIZE_SHARE if gpu else cpu_flops("float32", machine.cores)
    exact = gpu_flops(gpu, "float32") if gpu else cpu_flops("float32", machine.cores)
    work = _PASSES * tokens * token_flops(model, length, with_logits=False) / ordinary
    if scheme.method in ("gptq", "smoothquant") and tokens:
        work += model.layers * sum(_gptq_s(linear, tokens, exact) for linear in model.linears)
    if scheme.method == "awq":
        work += constants.AWQ_TRIALS * tokens * token_flops(model, length, with_logits=False) / ordinary
    if gpu:
        work += 2 * _PASSES * base / (constants.HOST_LINK_GB_PER_S * _GIGA)
    work += load_s(weight_bytes(model, scheme), machine)
    return Cost(start=start, load=load_s(base, machine), work=work)


def _gptq_s(linear: Linear, tokens: int, exact: float) -> float:
    """Its inputs' Hessian, that one's inverse, and every column rounded with what is left of the error passed on."""
    inputs = linear.inputs
    hessian = 2 * tokens * inputs**2
    inverse = _CHOLESKY_FLOPS * inputs**3
    rounding = 2 * linear.outputs * inputs**2
    return (hessian + inverse + rounding) / exact + inputs * constants.COLUMN_S
