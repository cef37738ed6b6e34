"""Memory of a quantization: host memory for all weights of the model, and GPU memory for one block at a time.

Follows llmcompressor 0.14, which processes a model block by block.
"""

from __future__ import annotations

from hpcq.catalog.model_shape import Block, ModelShape
from hpcq.catalog.tools import quantizers
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Calibration, Scheme
from hpcq.plan.memory.weights import GIB

USABLE_GPU_SHARE = 0.95
"""Share of a GPU's memory that can be allocated; torch loses the rest to fragmentation."""

_PROCESS_BYTES = GIB
"""Memory of Python with torch and transformers."""
_HOST_SLACK = 1.05
_FLOAT32_BYTES = 4  # Hessians, weights while they are rounded, and everything that a CPU computes
_PASS_TOKENS = 2048  # minimum of a forward pass (hpcq/quantize/llmcompressor.py, TOKENS_PER_BATCH)
_HIDDEN_COPIES = 5
_HESSIAN_METHODS = ("gptq", "smoothquant")


@dataclass(frozen=True, kw_only=True)
class QuantizationMemory:
    """Estimated memory of a quantization.

    Attributes:
        host_bytes: Host memory.
        gpu_bytes: Memory of the GPU; 0 if a CPU computes.
    """

    host_bytes: int
    gpu_bytes: int


def quantization_memory(
    shape: ModelShape, scheme: Scheme, calibration: Calibration | None, *, on_gpu: bool
) -> QuantizationMemory:
    """Estimate the memory of a quantization: on a GPU in the type of the base, or on a CPU in float32.

    A tool that declares its memory per parameter gets that, and the memory of a process.
    """
    tool = quantizers()[scheme.tool]
    if tool.host_bytes_per_parameter is not None:
        gpu = int(shape.parameters * tool.gpu_bytes_per_parameter) + _PROCESS_BYTES if on_gpu else 0
        host = int(shape.parameters * tool.host_bytes_per_parameter) + _PROCESS_BYTES
        return QuantizationMemory(host_bytes=host, gpu_bytes=gpu)
    value = shape.value_bytes if on_gpu else _FLOAT32_BYTES
    tokens = calibration.samples * calibration.sequence_length if calibration else 0
    # Inputs and outputs of a block, of all calibration sequences.
    between_blocks = 2 * tokens * shape.hidden_size * value
    host = int(_HOST_SLACK * (shape.parameters * value + between_blocks)) + _PROCESS_BYTES
    block = _peak_block_bytes(shape, scheme, calibration, value)
    return (
        QuantizationMemory(host_bytes=host, gpu_bytes=block + _PROCESS_BYTES)
        if on_gpu
        else QuantizationMemory(host_bytes=host + block, gpu_bytes=0)
    )


def _peak_block_bytes(shape: ModelShape, scheme: Scheme, calibration: Calibration | None, value: int) -> int:
    """Return the peak of one block with the method's statistics and a forward pass, or of the embeddings."""
    blocks = (_block_peak(block, shape, scheme, calibration, value) for block in shape.kinds)
    return max(*blocks, shape.vocab_size * shape.embedding_size * value)


def _block_peak(block: Block, shape: ModelShape, scheme: Scheme, calibration: Calibration | None, value: int) -> int:
    statistics = working = 0
    width = block.feed_forward + (block.experts.active * block.experts.width if block.experts else 0)
    if scheme.method in _HESSIAN_METHODS and calibration and block.quantizable:
        # The Hessians of all linear layers, of every expert too (gptq/base.py), the layer that is rounded, and two
        # copies of its Hessian.
        statistics = sum(
            count * _hessian_bytes(linear.in_features)
            for count, linears in block.groups
            for linear in linears
            if linear.is_quantizable
        )
        working = max(
            linear.parameters * _FLOAT32_BYTES + 2 * _hessian_bytes(linear.in_features) for linear in block.quantizable
        )
    elif scheme.method == "awq" and calibration:
        # Of all sequences, the inputs of attention, feed-forward layer and down_proj and two outputs stay on the GPU
        # (awq/base.py, offload_device None), and the inputs of o_proj, which is scaled only if v_proj is as wide; also
        # a copy of the widest layers that are scaled together.
        is_even = block.attention is not None and block.attention.kv_heads == block.attention.heads
        widths = (4 + is_even) * shape.hidden_size + width
        statistics = calibration.samples * calibration.sequence_length * widths * value
        working = 2 * shape.hidden_size * width * value
    tokens = max(_PASS_TOKENS, calibration.sequence_length) if calibration else 0
    forward_pass = tokens * (_HIDDEN_COPIES * shape.hidden_size + 3 * width) * value
    return block.weights * value + statistics + max(working, forward_pass)


def _hessian_bytes(columns: int) -> int:
    return columns * columns * _FLOAT32_BYTES
