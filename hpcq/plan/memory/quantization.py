"""What quantizing a model takes: host memory for all of its weights, and a GPU's memory for one block at a time.

Knows how llmcompressor 0.14 goes through a model, block by block; imports nothing of it, and knows no cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcq.catalog.models import ModelShape
from hpcq.core.work import Calibration, Scheme
from hpcq.plan.memory.weights import GIB, VALUE_BYTES

GPU_SHARE = 0.95
"""Of a GPU's memory that may be taken: torch keeps some of it in pieces too small to use."""

_PROCESS_BYTES = GIB
"""Of Python with torch and transformers."""
_HOST_SLACK = 1.05
_FULL_BYTES = 4  # of a float32: Hessians, weights while they are rounded, and all that a CPU computes
_PASS_TOKENS = 2048  # of a forward pass at least (hpcq/quantize/llmcompressor.py, TOKENS_PER_BATCH)
_HIDDEN_COPIES = 5
_HESSIAN_METHODS = ("gptq", "smoothquant")


@dataclass(frozen=True, kw_only=True)
class QuantizationNeed:
    """Bytes. gpu: 0 where a CPU computes, and `host` has it all."""

    host: int
    gpu: int


def quantization_need(
    shape: ModelShape, scheme: Scheme, calibration: Calibration | None, *, on_gpu: bool
) -> QuantizationNeed:
    """What making that checkpoint takes, on a GPU with the model in host memory, or on a CPU in float32."""
    value = VALUE_BYTES if on_gpu else _FULL_BYTES
    tokens = calibration.samples * calibration.sequence_length if calibration else 0
    # What goes into a block, of all sequences, and what comes out of it.
    between_blocks = 2 * tokens * shape.hidden * value
    host = int(_HOST_SLACK * (shape.parameters * value + between_blocks)) + _PROCESS_BYTES
    block = _one_block(shape, scheme, calibration, value)
    return (
        QuantizationNeed(host=host, gpu=block + _PROCESS_BYTES)
        if on_gpu
        else QuantizationNeed(host=host + block, gpu=0)
    )


def _one_block(shape: ModelShape, scheme: Scheme, calibration: Calibration | None, value: int) -> int:
    """A block, or the embeddings before the first; what the method gathers of its inputs; a pass through it."""
    weights = shape.linear_parameters // shape.layers * value
    gathered = working = 0
    if scheme.method in _HESSIAN_METHODS and calibration:
        # Of every linear layer at once (gptq/base.py); beside them the layer that is rounded, and two copies of its.
        gathered = sum(_hessian(linear.inputs) for linear in shape.linears)
        working = max(linear.parameters * _FULL_BYTES + 2 * _hessian(linear.inputs) for linear in shape.linears)
    elif scheme.method == "awq" and calibration:
        # Of all sequences, inputs of attention, feed-forward and down_proj, and two outputs, stay on the GPU
        # (awq/base.py, offload_device None), and those of o_proj, which is scaled only where v_proj is as wide; beside
        # them a copy of the widest layers that are scaled together.
        widths = (4 + (shape.kv_heads == shape.heads)) * shape.hidden + shape.intermediate
        gathered = calibration.samples * calibration.sequence_length * widths * value
        working = 2 * shape.hidden * shape.intermediate * value
    tokens = max(_PASS_TOKENS, calibration.sequence_length) if calibration else 0
    a_pass = tokens * (_HIDDEN_COPIES * shape.hidden + 3 * shape.intermediate) * value
    return max(weights + gathered + max(working, a_pass), shape.vocabulary * shape.hidden * value)


def _hessian(inputs: int) -> int:
    return inputs * inputs * _FULL_BYTES
