"""Shapes from a config.json: exact for supported families, an error with the reason for others."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.catalog.hf_config import find_config_shape, parse_config, read_checkpoint_shape, stated_dtype
from hpcq.catalog.model_config import UnsupportedConfigError, family_defaults
from hpcq.catalog.models import find_model_shape
from tests.models.family_configs import CONFIGS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
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
    ("config", "published"),
    [
        (LLAMA, 7_241_732_096),  # mistralai/Mistral-7B-v0.1
        (QWEN_2_5_7B, 7_615_616_512),
        (QWEN2_0_5B, 494_032_768),
        (QWEN_7B, 7_721_324_544),
        (PYTHIA_160M, 162_322_944),
    ],
    ids=["mistral", "qwen2.5", "qwen2-tied", "qwen", "pythia"],
)
def test_parameters_are_counted_as_published(config: dict[str, Any], published: int) -> None:
    """With biases, tied embeddings and gates, the parameters add up to the number in the model's repository."""
    shape = find_config_shape(config)
    assert shape
    assert shape.parameters == published


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "zamba2"}, "its family is not in hpcq's table (model_type = 'zamba2')"),
        ({"model_type": None}, "its config.json has no model_type"),
        ({"text_config": {}}, "its config.json has no model_type"),
        ({"text_config": [1]}, "text_config in its config.json is not an object"),
        (
            {"model_type": "gemma2", "layer_types": ["full_attention"]},
            "layer_types in its config.json has only 1 elements",
        ),
        ({"is_encoder_decoder": True}, "it has an encoder (is_encoder_decoder)"),
        ({"intermediate_size": [1, 2]}, "intermediate_size in its config.json is not one number for all blocks"),
        ({"num_attention_heads": 0}, "num_attention_heads in its config.json is zero or less"),
        ({"vocab_size": -1}, "vocab_size in its config.json is zero or less"),
    ],
)
def test_an_unsupported_configuration_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    """Unknown families, encoders and invalid sizes raise an error with the reason."""
    with pytest.raises(UnsupportedConfigError) as caught:
        parse_config({**LLAMA, **change})
    assert str(caught.value) == reason
    assert find_config_shape({**LLAMA, **change}) is None


def test_keys_of_other_families_are_ignored() -> None:
    """A family has no experts, windows or latent attention just because its configuration has their keys."""
    harmless = {"num_experts": 8, "sliding_window": 512, "kv_lora_rank": 512}
    assert parse_config(LLAMA | harmless) == parse_config(LLAMA)


def test_absent_keys_have_the_defaults_of_their_family() -> None:
    """Gemma-3-4B's config.json leaves out heads, vocabulary and tied embeddings: they are transformers' defaults."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {"model_type": "gemma3", "text_config": text | {"sliding_window": 1024}, "vision_config": {}}
    shape = parse_config(config)
    catalog = find_model_shape("google/gemma-3-4b-it")
    assert shape == catalog
    assert shape.left_out == ("vision_config",)
    assert sum(attention.window == 1024 for attention, count in shape.attentions for _ in range(count)) == 29


def write_checkpoint(folder: Path, config: dict[str, Any], **tensors: list[int]) -> None:
    """Write a config.json and a sparse model.safetensors with these tensors of 16-bit numbers."""
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, sizes in tensors.items():
        begin, end = end, end + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def test_the_size_of_the_files_is_known_and_compared(tmp_path: Path) -> None:
    """Headers and index state the bytes of a checkpoint; a contradiction with the configuration has both numbers."""
    config = LLAMA | {"dtype": "bfloat16"}
    write_checkpoint(tmp_path, config, all=[7_241_732_096])
    shape = read_checkpoint_shape(tmp_path)
    assert (shape.checkpoint_bytes, shape.contradiction) == (14_483_464_192, None)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 15_000_000_000}}))
    shape = read_checkpoint_shape(tmp_path)
    assert shape.checkpoint_bytes == 15_000_000_000
    assert shape.contradiction == (
        "its safetensors files have 15,000,000,000 bytes of tensors, but its config.json describes 14,483,464,192"
    )
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"all": "model.safetensors"}}))
    assert read_checkpoint_shape(tmp_path).checkpoint_bytes == 14_483_464_192
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert read_checkpoint_shape(tmp_path).checkpoint_bytes is None


def test_the_type_of_the_weights_is_that_of_the_tensors(tmp_path: Path) -> None:
    """Without a dtype in config.json, headers determine it, or the size in the index if files are missing.

    Observed: without a dtype, weights were saved in float32, with other scales.
    """
    write_checkpoint(tmp_path, LLAMA, all=[7_241_732_096])
    shape = read_checkpoint_shape(tmp_path)
    assert (shape.stored_dtype, shape.value_bytes, shape.contradiction) == ("bfloat16", 2, None)
    (tmp_path / "model.safetensors").unlink()
    assert (read_checkpoint_shape(tmp_path).stored_dtype, read_checkpoint_shape(tmp_path).value_bytes) == (None, 2)
    for total, dtype in ((14_483_464_192, None), (28_966_928_384, "float32")):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}}))
        assert read_checkpoint_shape(tmp_path).stored_dtype == dtype


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, None),
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "auto"}, None),
        ({"dtype": 3}, None),
        ({"dtype": "float32", "text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float32", "text_config": {}}, "float32"),
    ],
)
def test_a_stated_type_is_found(config: dict[str, Any], dtype: str | None) -> None:
    """Both names of the key, torch's prefix, and the part for text first; other values state nothing."""
    assert stated_dtype(config) == dtype


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """The error names a missing key, and a missing file."""
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 768, "vocab_size": 9, "model_type": "qwen"}))
    with pytest.raises(UnsupportedConfigError, match=r"^its config\.json has no num_hidden_layers$"):
        read_checkpoint_shape(tmp_path)
    with pytest.raises(UnsupportedConfigError, match=r"^its config\.json is missing or not valid JSON$"):
        read_checkpoint_shape(tmp_path / "nowhere")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(allow_nan=True),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(-1, 5), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_any_value_is_accepted_or_refused_with_a_reason(name: str, data: st.DataObject) -> None:
    """For any value of one key of a configuration there is a shape, or an error of the known kind."""
    model_type, settings = CONFIGS[name]
    keys = sorted({*settings, *family_defaults()[model_type], "architectures", "text_config"})
    config = {"model_type": model_type} | settings | {data.draw(st.sampled_from(keys)): data.draw(JUNK)}
    shape = find_config_shape(config)  # any other exception fails the test
    assert shape is None or (shape.parameters > 0 and shape.layers == len(list(shape.blocks)))
