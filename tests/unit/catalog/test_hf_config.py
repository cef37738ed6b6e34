"""Shapes from a config.json: exact for supported families, an error with the reason for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.hf_config import UnsupportedConfigError, find_config_shape, parse_config, read_checkpoint_shape

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
# Sizes in the config.json of these models. The tests compare with the number of weights in their repositories.
QWEN_2_5_7B = LLAMA | {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN2_0_5B = LLAMA | {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN_7B = LLAMA | {
    "model_type": "qwen",
    "intermediate_size": 22016,
    "num_key_value_heads": None,
    "vocab_size": 151936,
}
PYTHIA_160M = LLAMA | {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "num_key_value_heads": None,
    "vocab_size": 50304,
}


@pytest.mark.parametrize(
    ("config", "published", "tolerance"),
    [
        (LLAMA, 7_241_732_096, 0.0),  # mistralai/Mistral-7B-v0.1
        (QWEN_2_5_7B, 7_615_616_512, 0.0),
        (QWEN2_0_5B, 494_032_768, 0.0),
        (QWEN_7B, 7_721_324_544, 0.0),
        (PYTHIA_160M, 162_322_944, 0.001),
    ],
    ids=["mistral", "qwen2.5", "qwen2-tied", "qwen", "pythia"],
)
def test_parameters_are_counted_as_published(config: dict[str, Any], published: int, tolerance: float) -> None:
    """With biases, tied embeddings and gates, the parameters add up to the number in the model's repository."""
    shape = find_config_shape(config)
    assert shape
    assert abs(shape.parameters - published) <= tolerance * published


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_local_experts": 8}, "its feed-forward layers are mixtures of experts (num_local_experts = 8)"),
        ({"kv_lora_rank": 512}, "not all of its blocks are plain attention (kv_lora_rank)"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            "not all of its blocks are plain attention (layer_types has 'linear_attention')",
        ),
        ({"text_config": {}}, "it is not a text-only decoder (text_config, vision_config)"),
        ({"is_encoder_decoder": True}, "it has an encoder (is_encoder_decoder)"),
        ({"intermediate_size": [1, 2]}, "a size in its config.json is not one number for all blocks"),
        ({"num_attention_heads": 0}, "a size in its config.json is not one number for all blocks"),
        ({"vocab_size": 0}, "a size in its config.json is zero or less"),
    ],
)
def test_an_unsupported_configuration_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    """Mixtures of experts, hybrid models and invalid sizes raise an error with the reason."""
    with pytest.raises(UnsupportedConfigError) as caught:
        parse_config({**LLAMA, **change})
    assert str(caught.value) == reason
    assert find_config_shape({**LLAMA, **change}) is None


def test_keys_with_neutral_values_are_accepted() -> None:
    """Keys of unsupported models are accepted if their value means "none"."""
    harmless = {"num_experts": 1, "layer_types": ["full_attention", "sliding_attention"], "kv_lora_rank": None}
    assert parse_config(LLAMA | harmless) == parse_config(LLAMA)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """The error names a missing key, and a missing file."""
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 768, "model_type": "gpt2"}))
    with pytest.raises(UnsupportedConfigError, match=r"^its config\.json has no num_hidden_layers$"):
        read_checkpoint_shape(tmp_path)
    with pytest.raises(UnsupportedConfigError, match=r"^its config\.json is missing or not valid JSON$"):
        read_checkpoint_shape(tmp_path / "nowhere")
