"""Safetensors files with tensors as raw bytes, through the safetensors library (0.8), without torch.

Python reads and writes the files. The library's own functions for files report errors of the file system without errno,
map files to memory (an access kills the process with SIGBUS if another node has truncated the file), and create
temporary files with O_EXCL.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from hpcq.core.frozen import dataclass

_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
)
_DTYPE_OF_CODE = {TensorSpec(dtype=name, shape=[0], data_ptr=0, data_len=0).dtype: name for name in _DTYPES}
"""The name of a dtype by its code in a file, such as 'BF16'."""


@dataclass(frozen=True, kw_only=True)
class RawTensor:
    """A tensor as stored in a file.

    Attributes:
        dtype: The name of its dtype in torch ("float32", "bfloat16", …).
        shape: The shape.
        data: The bytes; writable if the tensor was read from a file.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def write_tensors(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. The same tensors give the same bytes, if `metadata` has one entry or none."""
    # The buffers must outlive the call of `serialize`, which reads them through their addresses.
    buffers = {name: _writable(tensor.data) for name, tensor in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=tensor.dtype, shape=tensor.shape, data_ptr=_address_of(buffers[name]), data_len=tensor.data.nbytes
        )
        for name, tensor in tensors.items()
    }
    path.write_bytes(serialize(specs, dict(metadata) or None))  # 0.8 writes broken JSON for {} and no tensors


def _writable(data: memoryview) -> memoryview:
    """Return `data`, or a copy of it if it is read-only, because ctypes takes only writable buffers."""
    return memoryview(bytearray(data)) if data.readonly else data


def _address_of(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) if data.nbytes else 0


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, RawTensor]]:
    """Return the metadata and the tensors of a safetensors file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a complete safetensors file.
    """
    content = path.read_bytes()
    try:
        found = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    return _metadata_of(content), {name: _raw_tensor(entry) for name, entry in found}


def _metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata of a valid file, which `deserialize` does not return."""
    header_end = 8 + int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8:header_end]).get("__metadata__", {})
    return metadata


def _raw_tensor(entry: Mapping[str, Any]) -> RawTensor:
    dtype = _DTYPE_OF_CODE.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']} is not supported")
    return RawTensor(dtype=dtype, shape=tuple(entry["shape"]), data=memoryview(entry["data"]))
