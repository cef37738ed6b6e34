"""Files of a checkpoint that are loaded, among copies in other formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.catalog.weight_files import ambiguous_weights, unindexed_weights, weight_files

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}


def _folder(tmp_path: Path, *names: str, index: object = None) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"weights")
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "index", "loaded"),
    [
        (("model.safetensors", "consolidated.safetensors", "original/consolidated.00.pth"), None, "model.safetensors"),
        (("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"), None, "model.safetensors"),
        ((*SHARDS, "consolidated.safetensors", "stale.safetensors"), INDEX, " ".join(SHARDS)),
        ((SHARDS[0], "consolidated.safetensors"), INDEX, SHARDS[0]),
        (("pytorch_model.bin", "training_args.bin", "model.gguf"), None, "pytorch_model.bin"),
        (("gptq_model-4bit-128g.safetensors", "consolidated.safetensors"), None, "gptq_model-4bit-128g.safetensors"),
        (("weights.Q4_K_M.gguf", "adapter_model.safetensors"), None, ""),
        (("model.safetensors",), {"weight_map": 3}, "model.safetensors"),
        ((), None, ""),
    ],
)
def test_only_loaded_files_count(tmp_path: Path, names: tuple[str, ...], index: object, loaded: str) -> None:
    """Copies of other publishers' formats, adapters and files that the index does not name are left out.

    Observed: the size on disk counted consolidated.safetensors, too.
    """
    assert " ".join(path.name for path in weight_files(_folder(tmp_path, *names, index=index))) == loaded


def test_two_sets_of_weights_are_a_problem(tmp_path: Path) -> None:
    """A single file next to an index of other files is a problem: the backends would load different weights."""
    folder = _folder(tmp_path, "model.safetensors", *SHARDS, index=INDEX)
    assert "names other files" in (ambiguous_weights(folder) or "")
    (folder / "model.safetensors").unlink()
    assert ambiguous_weights(folder) is None


def test_files_without_an_index_are_named(tmp_path: Path) -> None:
    """vLLM loads each safetensors file of a folder without an index."""
    folder = _folder(tmp_path, "model.safetensors", "consolidated.safetensors")
    assert unindexed_weights(folder) == ("consolidated.safetensors",)
    _folder(tmp_path, index={"weight_map": {"a": "model.safetensors"}})
    assert unindexed_weights(folder) == ()
    assert ambiguous_weights(folder) is None


def test_all_files_of_pytorch_are_named(tmp_path: Path) -> None:
    """vLLM loads every .bin file, in the order of their names: an older one can replace weights."""
    folder = _folder(tmp_path, "pytorch_model.bin", "pytorch_model_old.bin", "training_args.bin")
    assert unindexed_weights(folder) == ("pytorch_model_old.bin",)
    _folder(tmp_path, "model.safetensors")
    assert unindexed_weights(folder) == ()
