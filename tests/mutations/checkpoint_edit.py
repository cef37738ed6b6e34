"""Edits of safetensors files and JSON files as bytes, without torch: a mutation must not depend on what it tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A stored tensor.

    Attributes:
        dtype: Type as in the header ('BF16').
        shape: Shape.
        data: Bytes, little-endian, row by row.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, in the order of its header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    body = content[8 + length :]
    return {
        name: Tensor(dtype=entry["dtype"], shape=tuple(entry["shape"]), data=body[slice(*entry["data_offsets"])])
        for name, entry in json.loads(content[8 : 8 + length]).items()
        if name != "__metadata__"
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, as transformers does."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(one.data for one in tensors.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers loads from `folder`."""
    return sorted(folder.glob("model*.safetensors"))


def split_checkpoint(folder: Path) -> None:
    """Divide `model.safetensors` into two files and an index."""
    tensors = list(read_tensors(folder / SINGLE).items())
    half = len(tensors) // 2
    weight_map = {}
    for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        write_tensors(folder / name, dict(part))
        weight_map |= dict.fromkeys(dict(part), name)
    total = sum(len(tensor.data) for _, tensor in tensors)
    (folder / SINGLE).unlink()
    edit_json(folder / INDEX, lambda _: {"metadata": {"total_size": total}, "weight_map": weight_map})


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON file by what `change` returns for its content; None keeps the object that it has changed."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed, indent=1), encoding="utf-8")


def as_float32(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the values of a BF16, F16 or F32 tensor, flat; the array can be changed."""
    if tensor.dtype == "BF16":
        return (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(tensor.data, {"F16": "<f2", "F32": "<f4"}[tensor.dtype]).astype("<f4")


def from_float32(values: np.ndarray[Any, np.dtype[np.float32]], dtype: str) -> bytes:
    """Return values as bytes of BF16 (by truncation), F16 or F32."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
