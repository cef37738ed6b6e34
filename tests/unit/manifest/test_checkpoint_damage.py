"""Damaged models on this file system are refused when a manifest is loaded, before anything is submitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from tests.checkpoint_files import LLAMA, write_safetensors
from tests.unit.catalog.test_checkpoint_problems import TENSORS, without, write
from tests.unit.manifest.conftest import LoadText

MANIFEST = """
[run]
name = "x"
[[models]]
path = "model"
[schemes]
use = ["bf16", "fp8-dynamic"]
[tasks]
use = ["arc_challenge"]
"""
WEIGHTS = Path("model/model.safetensors")


def _cut() -> None:
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:-7])


def _corrupt() -> None:
    WEIGHTS.write_bytes(b"\xff" * 64 + WEIGHTS.read_bytes()[64:])


def _absent_shard() -> None:
    weight_map = dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors")
    WEIGHTS.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    WEIGHTS.unlink()


def _small_vocabulary() -> None:
    small = {"model.embed_tokens.weight": (1000, 256), "lm_head.weight": (1000, 256)}
    write_safetensors(WEIGHTS, **{**TENSORS, **small})
    config = {**LLAMA, "num_hidden_layers": 3, "vocab_size": 1000}
    WEIGHTS.with_name("config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_cut, "model.safetensors has "),
        (_corrupt, "model.safetensors is not a complete safetensors file"),
        (_absent_shard, "model-00001-of-00002.safetensors, which model.safetensors.index.json names, is missing: "),
        (lambda: write_safetensors(WEIGHTS, **without("lm_head.weight")), "it has no head"),
        (
            lambda: write_safetensors(WEIGHTS, **without("model.layers.1.mlp.up_proj.weight")),
            "layer 1 has no mlp.up_proj.weight",
        ),
        (_small_vocabulary, "tokenizer.json has token ids up to 1023, but the model has 1000 tokens"),
    ],
)
def test_a_damaged_model_is_refused_at_plan_time(
    load_text: LoadText, damage: Callable[[], object], problem: str
) -> None:
    """The message has the key, the file and the folder.

    Observed: such models passed the plan; without a head or a projection, two shards were two random models.
    """
    write(Path("model"))
    load_text(MANIFEST)
    damage()

    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST)
    [sentence] = caught.value.problems
    assert sentence.startswith("mine.toml:5: models.0.path: 'model': ")
    assert problem in sentence
    assert sentence.endswith("model).")
