"""Headers of safetensors files: exact bytes without reading the weights, and files that are incomplete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.catalog.safetensors_headers import files_of_tensors, read_headers
from tests.checkpoint_files import write_safetensors


def test_names_types_shapes_and_bytes_are_read(tmp_path: Path) -> None:
    """Every tensor of a single file is returned with its type, shape and bytes."""
    write_safetensors(tmp_path / "model.safetensors", a=(2, 3), b=(5,))
    found = {one.name: (one.dtype, one.shape, one.bytes) for one in read_headers(tmp_path)}
    assert found == {"a": ("BF16", (2, 3), 12), "b": ("BF16", (5,), 10)}


def test_only_files_of_the_index_count(tmp_path: Path) -> None:
    """With an index, other files in the folder are not part of the model."""
    write_safetensors(tmp_path / "model-1.safetensors", a=(2,))
    write_safetensors(tmp_path / "model-2.safetensors", b=(3,))
    write_safetensors(tmp_path / "consolidated.safetensors", a=(2,), b=(3,))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sum(one.bytes for one in read_headers(tmp_path)) == 10
    assert files_of_tensors(tmp_path, ["b", "c"]) == {"b": tmp_path / "model-2.safetensors"}


def test_a_cut_file_is_rejected(tmp_path: Path) -> None:
    """A file that is shorter than its header says is rejected."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, a=(4, 4))
    content = path.read_bytes()
    for length in (4, 20, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"is not a complete safetensors file|according to its header"):
            read_headers(tmp_path)
