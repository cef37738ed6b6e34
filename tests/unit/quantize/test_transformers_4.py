"""Configurations of transformers 5 in transformers 4, which ignores the keys that it does not know."""

from __future__ import annotations

import pytest

from hpcq.core.errors import UserInputError
from hpcq.quantize.transformers_4 import old_settings

LLAMA_3 = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}


def test_the_rotary_embedding_keeps_its_base() -> None:
    """Without `rope_theta`, transformers 4 would compute every model with a base of 10000."""
    config = {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    assert old_settings(config, "m") == {"torch_dtype": "bfloat16", "rope_theta": 5e5}
    scaled = {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **LLAMA_3}}
    assert old_settings(scaled, "m") == {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": LLAMA_3}


def test_an_old_configuration_is_not_changed() -> None:
    """A file of transformers 4 has the keys that it reads."""
    assert old_settings({"torch_dtype": "float16", "rope_theta": 1e4, "rope_scaling": None}, "m") == {}


def test_rotary_embeddings_by_layer_type_are_refused() -> None:
    """transformers 4 reads them under other keys, or not at all."""
    config = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    with pytest.raises(UserInputError, match="cannot read rope_parameters by layer type: choose a scheme of gptqmodel"):
        old_settings(config, "google/gemma-3")
