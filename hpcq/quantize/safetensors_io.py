"""Files of tensors in the safetensors format, written and read as bytes: an 8-byte length, a JSON header, the data.

Knows the format (huggingface/safetensors, README); imports neither torch nor numpy, which a rehearsal does without.
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
"""What stands before the data: a dtype, a shape and offsets for each tensor; and metadata, whose values are text."""


@dataclass(frozen=True, kw_only=True)
class RawTensor:
    """A tensor as it lies in a file: the dtype's name there ('F32', 'BF16', …), the shape, and the bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def header_of(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> Header:
    """The header of a file with `tensors` in their order."""
    header: Header = {METADATA: dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.data.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    return header


def encoded(value: object) -> bytes:
    """`value` as JSON in its one canonical spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_tensors(path: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> None:
    """Write a file, without copying what it is made of."""
    header = encoded(header_of(tensors, metadata))
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor.data)


def read_tensors(path: Path) -> tuple[Header, dict[str, RawTensor], memoryview]:
    """The header, the tensors, and all of their bytes.

    Not by mmap: where another node cuts a file short, touching the mapping ends the process by SIGBUS. The bytes are
    writable, for torch warns of those that are not.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no whole safetensors file.
    """
    content = memoryview(bytearray(path.stat().st_size))
    with path.open("rb") as file:
        file.readinto(content)
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header, data = json.loads(bytes(content[_LENGTH_BYTES:start])), content[start:]
    try:
        return header, {name: _tensor(entry, data) for name, entry in header.items() if name != METADATA}, data
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its header is none of safetensors'.") from error


def _tensor(entry: Mapping[str, Any], data: memoryview) -> RawTensor:
    start, end = entry["data_offsets"]
    if end > len(data):
        raise ValueError("cut short")
    return RawTensor(dtype=entry["dtype"], shape=tuple(entry["shape"]), data=data[start:end])
