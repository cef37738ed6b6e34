"""Reader and writer of safetensors files as bytes: an 8-byte header length, a JSON header, the data.

The format is described in the README of huggingface/safetensors. Imports neither torch nor numpy, so that synthetic
runs need neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA = "__metadata__"
_LENGTH_BYTES = 8

Header = dict[str, Any]
"""JSON header of a file: dtype, shape and offsets of each tensor, and metadata, whose values are strings."""


@dataclass(frozen=True, kw_only=True)
class RawTensor:
    """A tensor as stored in a file.

    Attributes:
        dtype: Its name in the format ("F32", "BF16", …).
        shape: The shape.
        data: The bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def header_of(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> Header:
    """Return the header of a file with `tensors` in their order."""
    header: Header = {METADATA: dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.data.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    return header


def canonical_json(value: object) -> bytes:
    """Return `value` as canonical JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_tensors(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, without copying the tensors' data."""
    header = canonical_json(header_of(tensors, metadata))
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor.data)


def read_tensors(path: Path) -> tuple[Header, dict[str, RawTensor], memoryview]:
    """Read a safetensors file.

    It is not mapped (mmap): if another node truncates the file, access to the mapping kills the process with SIGBUS.
    The buffer is writable because torch warns about read-only ones.

    Returns:
        The header, the tensors by name, and the bytes of all tensors.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a complete safetensors file.
    """
    content = memoryview(bytearray(path.stat().st_size))
    with path.open("rb") as file:
        file.readinto(content)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header, data = json.loads(bytes(content[_LENGTH_BYTES:start])), content[start:]
    try:
        return header, {name: _tensor(entry, data) for name, entry in header.items() if name != METADATA}, data
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a valid safetensors header.") from error


def _tensor(entry: Mapping[str, Any], data: memoryview) -> RawTensor:
    start, end = entry["data_offsets"]
    if end > len(data):
        raise ValueError("truncated")
    return RawTensor(dtype=entry["dtype"], shape=tuple(entry["shape"]), data=data[start:end])
