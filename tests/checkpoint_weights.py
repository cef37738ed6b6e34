"""Changes of real checkpoints: keys of their JSON files, and the type of their weights."""

from __future__ import annotations

import json
from pathlib import Path


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def rewrite_weights(folder: Path, dtype: str, *, as_pickle: bool = False) -> None:
    """Convert the weights of a checkpoint, and remove the dtype from its configuration."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(path).items()}
    if as_pickle:
        path.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, path, metadata={"format": "pt"})
    edit_json(folder / "config.json", dtype=None, torch_dtype=None)
