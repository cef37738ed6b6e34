"""Settings that change a model's computation are found although two versions of transformers wrote the files."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.catalog.config_differences import config_differences
from tests.checkpoint_files import LLAMA

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
BASE: dict[str, Any] = {
    **LLAMA,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": ROPE,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
    "use_cache": True,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"rope_theta": 10000.0}, "rope_theta is 10000.0, not 500000.0"),
        ({"rope_scaling": None}, 'rope_type is "default", not "llama3"'),
        ({"rope_scaling": {**ROPE, "factor": 32.0}}, "factor is 32.0, not 8.0"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", not "silu"'),
        ({"rms_norm_eps": 1e-06}, "rms_norm_eps is 1e-06, not 1e-05"),
        ({"max_position_embeddings": 64}, "max_position_embeddings is 64, not 2048"),
        ({"attention_bias": True}, "attention_bias is true, not false"),
        ({"sliding_window": 4096}, "sliding_window is 4096, not null"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, not false"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8, not 4"),
    ],
)
def test_settings_that_change_the_computation_are_found(changes: dict[str, Any], found: str) -> None:
    """Each differing key is named with both values.

    Observed: a checkpoint with another rope_theta or activation function was compared with its base without a note.
    """
    assert found in [*config_differences({**BASE, **changes}, BASE)]


def test_other_forms_of_the_same_settings_are_no_difference() -> None:
    """The same model, saved by transformers 5 with its names, all defaults and a quantization, has no difference."""
    newer = {
        **{key: value for key, value in BASE.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")},
        "dtype": "bfloat16",
        "rope_parameters": {**ROPE, "rope_theta": 500000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": 64,
        "attention_dropout": 0.0,
        "pad_token_id": None,
        "eos_token_id": [2, 3],
        "transformers_version": "5.17.0",
        "use_cache": False,
        "quantization_config": {"quant_method": "gptq"},
    }
    assert not [*config_differences(newer, BASE)]
    assert not [*config_differences(BASE, newer)]


def test_nested_rotary_settings_are_those_of_older_names() -> None:
    """Gemma-3: a table per kind of attention has replaced rope_theta and rope_local_base_freq."""
    older = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    newer = {"model_type": "gemma3_text", "rope_parameters": kinds}
    assert not [*config_differences(newer, older)]
    other = {**older, "rope_local_base_freq": 2e4}
    assert [*config_differences(newer, other)] == ["sliding_attention.rope_theta is 10000.0, not 20000.0"]


def test_a_window_that_is_not_used_is_no_difference() -> None:
    """Qwen2: transformers 5 writes null for a window that use_sliding_window turns off."""
    base = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 70}
    assert not [*config_differences({**base, "sliding_window": None, "max_window_layers": 28}, base)]


def test_the_part_for_text_is_compared() -> None:
    """A checkpoint of the text part alone is compared with the text part of a multimodal base."""
    text = {**LLAMA, "rms_norm_eps": 1e-05}
    base = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1}}
    assert not [*config_differences(text, base)]
    assert [*config_differences({**text, "rms_norm_eps": 1e-06}, base)] == ["rms_norm_eps is 1e-06, not 1e-05"]
