"""Names, types, shapes and bytes of the tensors in safetensors files, from their headers or index alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hpcq.core.frozen import dataclass

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library (0.8)."""
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types of base checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """A tensor as its file's header describes it.

    Attributes:
        name: Its name.
        dtype: Its type, as in the file ('BF16', 'I32', …).
        shape: Its shape.
        bytes: Its size in bytes.
        offset: Its first byte in its file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int = 0


def read_headers(folder: Path) -> tuple[TensorHeader, ...]:
    """Return all tensors of the checkpoint in `folder`; empty if it has no file that transformers would load.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a safetensors file, or is shorter than its header says.
    """
    return tuple(header for path in _files(folder) for header in headers_of(path))


def tensor_bytes(folder: Path) -> int | None:
    """Return the bytes of all tensors of the checkpoint in `folder`; None: it has no files that are readable here.

    The index states the total, before the files are here. If it does not, the headers do.
    """
    try:
        total = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
    except (OSError, ValueError, AttributeError):
        total = None
    if isinstance(total, int | float) and total > 0:
        return int(total)
    try:
        return sum(header.bytes for header in read_headers(folder)) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stored_dtype(folder: Path) -> str | None:
    """Return the type of most bytes of the checkpoint in `folder`; None: it is none of _DTYPES, or nothing is readable.

    Some tensors may have another type, such as norms in float32 among weights in bfloat16.
    """
    sizes: Counter[str] = Counter()
    try:
        for header in read_headers(folder):
            sizes[header.dtype] += header.bytes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return _DTYPES.get(sizes.most_common(1)[0][0]) if sizes else None


def files_of_tensors(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Return the file of each of these tensors; those that no file has are omitted.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a safetensors file.
    """
    files = _files(folder) if names else ()
    return {header.name: path for path in files for header in headers_of(path) if header.name in names}


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return [folder / SINGLE_FILE] if (folder / SINGLE_FILE).is_file() else []


def headers_of(path: Path) -> tuple[TensorHeader, ...]:
    """Return the tensors of one file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a safetensors file, or has another size than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise ValueError(f"{path} is not a complete safetensors file")
        content = json.loads(file.read(length))
    try:
        headers = tuple(
            _header(name, entry, _LENGTH_BYTES + length) for name, entry in content.items() if name != "__metadata__"
        )
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a safetensors file") from None
    expected = _LENGTH_BYTES + length + sum(header.bytes for header in headers)
    if size != expected:
        raise ValueError(f"{path} has {size} bytes, {expected} according to its header")
    return headers


def _header(name: str, entry: Mapping[str, Any], data_offset: int) -> TensorHeader:
    begin, end = entry["data_offsets"]
    return TensorHeader(
        name=name,
        dtype=entry["dtype"],
        shape=tuple(entry["shape"]),
        bytes=end - begin,
        offset=data_offset + begin,
    )
