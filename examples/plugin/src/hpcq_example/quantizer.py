"""Quantizer that rounds each weight of the linear layers to the nearest of 255 values per output channel.

The checkpoint has the rounded values in bfloat16, the type of the base, so every backend loads it as an unquantized
one. It shows how much quality the rounding loses. It does not save memory.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Scheme
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.safetensors_io import RawTensor, read_tensors, write_tensors

_LARGEST = 127
_LINEAR = "_proj.weight"
"""End of the names of a Llama's linear layers."""


class NearestQuantizer:
    """Rounds weights to int8 with one scale per output channel."""

    def quantize(self, job: QuantizeJob) -> dict[str, Any]:
        """Create the checkpoint in `job.output`; see `hpcq.quantize.interface.Quantizer`."""
        _check_supported(job.scheme)
        rounded = 0
        for path in sorted(path for path in job.base.iterdir() if path.is_file()):
            if path.suffix == ".safetensors":
                job.report(f"quantizing {path.name}")
                metadata, tensors = read_tensors(path)
                for name in [name for name in tensors if _is_quantized(name, job.scheme)]:
                    tensors[name] = _rounded(tensors[name], name)
                    rounded += 1
                write_tensors(job.output / path.name, tensors, metadata)
            else:
                shutil.copyfile(path, job.output / path.name)
        return {"recipe": [["nearest", {"bits": 8, "layers": rounded}]], "device": "cpu"}


def _check_supported(scheme: Scheme) -> None:
    for field, value, only in (
        ("weights", scheme.weights, "int8"),
        ("activations", scheme.activations, "bf16"),
        ("granularity", scheme.granularity, "channel"),
        ("symmetric", scheme.symmetric, True),
    ):
        if value != only:
            raise UserInputError(f"'{scheme.name}': nearest does not support {field} '{value}': use '{only}'.")


def _is_quantized(name: str, scheme: Scheme) -> bool:
    return name.endswith(_LINEAR) and not any(part in name for part in scheme.ignore)


def _rounded(tensor: RawTensor, name: str) -> RawTensor:
    """Return a tensor in bfloat16 with its values rounded."""
    if tensor.dtype != "bfloat16":
        raise UserInputError(f"{name} is in {tensor.dtype}: nearest supports only bfloat16. Convert the checkpoint.")
    # numpy has no bfloat16: its bits are the upper half of a float32.
    bits = np.frombuffer(tensor.data, dtype="<u2").astype("<u4") << 16
    weights = bits.view("<f4").reshape(tensor.shape)
    scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True), np.finfo("f4").tiny) / _LARGEST
    values = (np.rint(weights / scales) * scales).astype("<f4").view("<u4")
    # To the nearest bfloat16, ties to even.
    result = ((values + 0x7FFF + ((values >> 16) & 1)) >> 16).astype("<u2")
    return RawTensor(dtype=tensor.dtype, shape=tensor.shape, data=memoryview(result.tobytes()))
