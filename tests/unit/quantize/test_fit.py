"""Facts about which group sizes a model's configuration admits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.work import Scheme
from hpcq.quantize.fit import check_divisibility, input_sizes

SMOLLM2_135M = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}


def grouped(name: str, group_size: int) -> Scheme:
    """A GPTQ scheme of that group size."""
    return Scheme(
        name=name,
        tool="llmcompressor",
        method="gptq",
        weights="int4",
        activations="bf16",
        granularity="group",
        group_size=group_size,
    )


def test_the_sentence_names_model_sizes_layer_and_cure() -> None:
    """A group size that does not divide is refused with the value, the place and the nearest one that does."""
    assert check_divisibility(grouped("gptq-w4a16", 128), SMOLLM2_135M, "SmolLM2-135M") == (
        "'gptq-w4a16' cannot quantize SmolLM2-135M: 576 is not a multiple of 128 (model.layers.*.self_attn.q_proj). "
        "Try 'gptq-w4a16-g64'."
    )


def test_a_group_size_in_the_name_is_replaced() -> None:
    """The cure for 'x-g128' is 'x-g64', not 'x-g128-g64'."""
    sentence = check_divisibility(grouped("gptq-w4a16-g128", 128), SMOLLM2_135M)
    assert sentence is not None
    assert sentence.endswith("Try 'gptq-w4a16-g64'.")


def test_without_any_fitting_group_size_the_cure_is_another_granularity() -> None:
    """Where no usual group size divides, the sentence points to scales per channel."""
    sentence = check_divisibility(grouped("gptq-w4a16", 128), {"hidden_size": 100, "intermediate_size": 300})
    assert sentence is not None
    assert "per channel" in sentence


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        ({"hidden_size": 256, "intermediate_size": 300}, "mlp.down_proj"),
        ({"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 3, "head_dim": 32}, "self_attn.o_proj"),
        ({"text_config": {"hidden_size": 100, "intermediate_size": 512}}, "self_attn.q_proj"),
    ],
)
def test_every_kind_of_layer_is_looked_at(config: dict[str, Any], layer: str) -> None:
    """The down projection, heads of a free width, and a text model inside a larger one can each be the misfit."""
    sentence = check_divisibility(grouped("gptq-w4a16", 64), config)
    assert sentence is not None
    assert f"{layer})" in sentence


def test_scales_per_channel_fit_every_model() -> None:
    """A scheme without groups is never refused."""
    scheme = Scheme(name="w8", tool="llmcompressor", method="gptq", weights="int8", activations="bf16")
    assert check_divisibility(scheme, {"hidden_size": 577, "intermediate_size": 1537}) is None


@given(
    heads=st.integers(1, 64),
    head_dim=st.integers(1, 300),
    intermediate=st.integers(1, 20_000),
    group_size=st.sampled_from((16, 32, 64, 128)),
)
def test_refused_exactly_where_a_remainder_is_left(
    heads: int, head_dim: int, intermediate: int, group_size: int
) -> None:
    """A scheme passes if and only if its group size divides the inputs of every layer."""
    config = {"hidden_size": heads * head_dim, "intermediate_size": intermediate, "num_attention_heads": heads}
    fits = heads * head_dim % group_size == 0 and intermediate % group_size == 0
    assert (check_divisibility(grouped("s", group_size), config) is None) == fits


def test_unknown_configurations_are_let_through() -> None:
    """A configuration that names no sizes is not refused for a guess."""
    assert input_sizes({"model_type": "novel"}) == {}
    assert check_divisibility(grouped("gptq-w4a16", 128), {"model_type": "novel"}) is None
