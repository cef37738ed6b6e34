"""The planner's estimate of weights equals the bytes of real checkpoints."""

from __future__ import annotations

import dataclasses

import pytest

from hpcq.catalog.model_shape import Linear, ModelShape
from hpcq.catalog.models import find_model_shape
from hpcq.catalog.schemes import find_scheme
from hpcq.core.work_records import Scheme
from hpcq.plan.memory.weights import linear_bytes, weight_bytes

# SmolLM2-135M-Instruct as `make quickstart` stages and quantizes it (llmcompressor 0.14.0.1, compressed-tensors
# 0.19.0): bytes of all tensors in model.safetensors, and of the file, whose header names them.
QUICKSTART = {
    "bf16": (269_030_016, 269_060_552),
    "fp8-dynamic": (163_172_736, 163_227_736),
    "gptq-w4a16-g64": (113_098_656, 113_175_416),
    "smoothquant-w8a8": (163_172_736, 163_226_688),
}


def shape(name: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> ModelShape:
    """Return a model shape in the catalog."""
    found = find_model_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """Return a scheme in the catalog."""
    found = find_scheme(name)
    assert found
    return found


@pytest.mark.parametrize("name", QUICKSTART)
def test_the_estimate_equals_the_quickstarts_checkpoints(name: str) -> None:
    """The estimate equals the tensors to the byte; the file is less than 2 % larger."""
    tensors, file = QUICKSTART[name]
    planned = weight_bytes(shape(), scheme(name))
    assert planned == tensors
    assert planned == pytest.approx(file, rel=0.02)


def test_zero_points_are_packed_into_words() -> None:
    """An asymmetric 4-bit layer has one 4-bit zero point per group and output, packed along the outputs."""
    linear = Linear(name="x", in_features=256, out_features=40)
    with_zeros, without = scheme("awq-w4a16"), dataclasses.replace(scheme("awq-w4a16"), symmetric=True)
    assert linear_bytes(linear, without) == 40 * 256 // 2 + 40 * 2 * 2 + 16
    assert linear_bytes(linear, with_zeros) - linear_bytes(linear, without) == 2 * 5 * 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvfp4", 40 * 256 // 2 + 40 * 16 + 4 + 4),  # scales of one byte; a float32 scale of weights, and of inputs
        ("nvfp4-w4a16", 40 * 256 // 2 + 40 * 16 + 4),
        ("mxfp4", 40 * 256 // 2 + 40 * 8),
        ("mxfp8", 40 * 256 + 40 * 8),
        ("fp8-block", 40 * 256 + 1 * 2 * 2),  # 40 outputs are one block
        ("w4a8-fp8", 40 * 256 // 2 + 40 * 2 * 2 + 16),
    ],
)
def test_the_formats_of_today_have_the_bytes_of_their_definition(name: str, expected: int) -> None:
    """A layer of 256 inputs and 40 outputs: numbers, scales of groups or blocks, global scales, and a stored shape."""
    assert linear_bytes(Linear(name="x", in_features=256, out_features=40), scheme(name)) == expected


def test_a_quantized_kv_cache_has_two_scales_per_attention_layer() -> None:
    """Keys and values of the 30 layers have a scale of two bytes each."""
    assert weight_bytes(shape(), scheme("fp8-dynamic-kv8")) - weight_bytes(shape(), scheme("fp8-dynamic")) == 30 * 2 * 2


def test_ignored_layers_keep_16_bits() -> None:
    """A name ignores a layer in one block, a pattern in all; a head that is not ignored is quantized."""
    plain = weight_bytes(shape(), scheme("fp8-dynamic"))
    down = 576 * 1536 * (2 - 1) - 576 * 2  # one byte per weight more, without one scale per output
    first = dataclasses.replace(scheme("fp8-dynamic"), ignore=("lm_head", "model.layers.0.mlp.down_proj"))
    every = dataclasses.replace(first, ignore=("lm_head", r"re:.*down_proj$"))
    assert weight_bytes(shape(), first) - plain == down
    assert weight_bytes(shape(), every) - plain == 30 * down
    untied = shape("meta-llama/Llama-3.1-8B")
    head = untied.vocab_size * untied.hidden_size
    with_head = dataclasses.replace(scheme("fp8-dynamic"), ignore=())
    saved = weight_bytes(untied, scheme("fp8-dynamic")) - weight_bytes(untied, with_head)
    assert saved == head - untied.vocab_size * 2
