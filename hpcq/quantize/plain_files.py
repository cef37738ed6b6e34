"""Files of a checkpoint in the form that transformers and vLLM read, whichever tool wrote its tensors.

Weights are `model.safetensors`, or shards with an index. config.json is that of the base with `quantization_config`.
The base's other files (tokenizer, chat templates, generation settings, code) are exact copies.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.safetensors_headers import INDEX_FILE, SINGLE_FILE, headers_of
from hpcq.core.checkpoint_files import files_in, travelling_files

SHARD_BYTES = 5 * 10**9
"""Largest shard, as in transformers (5.17)."""

Convert = Callable[[str, Any], Any]
"""Returns the tensor to store for a name and a tensor of the tool; None: it is left out."""


def write_weights(files: Iterable[Path], output: Path, convert: Convert) -> None:
    """Write the tensors of a tool's safetensors files to `output`, and remove these files.

    One shard at a time is in memory.

    Args:
        files: The tool's files.
        output: Folder of the checkpoint.
        convert: Applied to each tensor.
    """
    from safetensors import safe_open

    sources = sorted(files)
    shards: list[Path] = []
    shard_of: dict[str, Path] = {}
    pending: dict[str, Any] = {}
    size = total = 0
    for source in sources:
        with safe_open(source, framework="pt") as file:
            for name in sorted(header.name for header in headers_of(source)):
                tensor = convert(name, file.get_tensor(name))
                if tensor is None:
                    continue
                if pending and size + tensor.nbytes > SHARD_BYTES:
                    shards.append(_write_shard(pending, output, len(shards), shard_of))
                    pending, size = {}, 0
                pending[name] = tensor.contiguous()
                size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_write_shard(pending, output, len(shards), shard_of))
    for source in sources:
        source.unlink()
    if len(shards) == 1:
        shards[0].rename(output / SINGLE_FILE)
        return
    names = {path: f"model-{number:05}-of-{len(shards):05}.safetensors" for number, path in enumerate(shards, start=1)}
    for path, name in names.items():
        path.rename(output / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[path] for name, path in sorted(shard_of.items())},
    }
    (output / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_shard(tensors: dict[str, Any], output: Path, number: int, shard_of: dict[str, Path]) -> Path:
    from safetensors.torch import save_file

    path = output / f".shard-{number}"
    save_file(tensors, path, metadata={"format": "pt"})
    shard_of.update(dict.fromkeys(tensors, path))
    return path


def write_config(base: Path, output: Path, quantization: Mapping[str, Any]) -> None:
    """Write config.json: that of the base, with the declaration of the quantization."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "quantization_config": dict(quantization)}, indent=2, sort_keys=True)
    (output / "config.json").write_text(text + "\n", encoding="utf-8")


def copy_other_files(base: Path, output: Path) -> None:
    """Copy tokenizer, chat templates, generation settings and code, as they are.

    transformers would write class names that older versions do not know, refuses invalid settings, and saves only the
    modules of the model's own code, not those of its tokenizer.
    """
    for name in travelling_files(files_in(base)):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, output / name)
