"""Files of checkpoints in one form, whichever tool wrote their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.safetensors_headers import INDEX_FILE, read_headers
from hpcq.quantize import plain_files
from hpcq.quantize.plain_files import write_config, write_weights

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402


def write_tool_files(folder: Path) -> list[Path]:
    """Write two files as a tool would name them."""
    for number in range(2):
        save_file(
            {f"t{number}{letter}": torch.full((256,), number) for letter in "ab"}, folder / f"gptq-{number}.safetensors"
        )
    return sorted(folder.glob("gptq-*"))


def test_a_small_checkpoint_is_one_file(tmp_path: Path) -> None:
    """Tensors of all files are written to model.safetensors, converted, and the tool's files are removed."""

    def convert(name: str, tensor: Any) -> Any:
        return None if name == "t0a" else tensor.float()

    write_weights(write_tool_files(tmp_path), tmp_path, convert)
    found = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(("t0b", "t1a", "t1b"), torch.float32)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_large_checkpoint_has_shards_and_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shard is larger than the limit, and the index names the file of each tensor."""
    monkeypatch.setattr(plain_files, "SHARD_BYTES", 3 * 256 * 8)
    write_weights(write_tool_files(tmp_path), tmp_path, lambda _, tensor: tensor)
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert index["metadata"]["total_size"] == 4 * 256 * 8
    assert {header.name for header in read_headers(tmp_path)} == set(index["weight_map"])


def test_the_configuration_is_that_of_the_base(tmp_path: Path) -> None:
    """Every key of the base stays as it is, so that no version of transformers changes the model."""
    base, output = tmp_path / "base", tmp_path / "output"
    base.mkdir(), output.mkdir()
    config = {
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
        "dtype": "bfloat16",
    }
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_config(base, output, {"quant_method": "gptq"})
    assert json.loads((output / "config.json").read_text(encoding="utf-8")) == {
        **config,
        "quantization_config": {"quant_method": "gptq"},
    }
