"""A local hub with a small model, and a user with an empty cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.hub_client import HubClient
from tests.hub_server import HubServer, running_hub

MODEL = "org/model"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NEEDED = {"README.md", "chat_template.jinja", "config.json", "model.safetensors.index.json", "tokenizer.json", *SHARDS}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A hub with `org/model`: two shards that are LFS files, and files that no evaluation needs."""
    with running_hub(tmp_path / "root", lfs_above=20_000, redirect=1) as server:
        write_model(server.repository(MODEL))
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> HubClient:
    """A user without a token."""
    return HubClient(tmp_path / "home", hub.url)


def write_model(folder: Path, *, shard_bytes: int = 200_000, seed: int = 0) -> None:
    """Write a model with two shards of reproducible content."""
    chance = np.random.default_rng(seed)
    weight_map = {}
    for number, name in enumerate(SHARDS):
        tensor = f"layers.{number}.weight"
        save_file({tensor: chance.integers(0, 255, shard_bytes, dtype=np.uint8)}, folder / name)
        weight_map[tensor] = name
    index = {"metadata": {"total_size": 2 * shard_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "seed": seed}))
    for name in ("README.md", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(f"{name} {seed}")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "model.gguf", "logo.png"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.bytes(50_000))
