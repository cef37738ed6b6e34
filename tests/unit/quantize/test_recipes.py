"""Recipes for llmcompressor: modifiers and settings of each scheme."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import ScaleMapping, Scheme
from hpcq.quantize.recipes import config_group, make_recipe


def scheme(**fields: Any) -> Scheme:
    """A scheme for llmcompressor, by default GPTQ W4A16."""
    defaults: dict[str, Any] = {"name": "s", "tool": "llmcompressor", "method": "gptq", "weights": "int4"}
    return Scheme(**{**defaults, "activations": "bf16", **fields})


def test_fp8_dynamic_is_the_preset() -> None:
    """FP8 dynamic: weight scales per channel, activation scales per token at run time, no calibration."""
    ((name, settings),) = make_recipe(scheme(method="rtn", weights="fp8_e4m3", activations="fp8_e4m3", dynamic=True))
    assert name == "QuantizationModifier"
    assert settings["ignore"] == ["lm_head"]
    weights, activations = (settings["config_groups"]["group_0"][key] for key in ("weights", "input_activations"))
    assert (weights["type"], weights["num_bits"], weights["strategy"]) == ("float", 8, "channel")
    assert (activations["strategy"], activations["dynamic"]) == ("token", True)


def test_fp8_static_has_one_scale_per_tensor() -> None:
    """FP8 static: weights and activations have one scale per tensor, from calibration."""
    group = config_group(
        scheme(method="rtn", weights="fp8_e4m3", activations="fp8_e4m3", granularity="tensor", dynamic=False)
    )
    assert group["weights"]["strategy"] == "tensor"
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("tensor", False)


def test_weight_only_schemes_leave_activations_alone() -> None:
    """W4A16 and W8A16 have no settings for activations."""
    assert "input_activations" not in config_group(scheme())


def test_the_group_size_is_the_schemes_own() -> None:
    """A group size of 64 is passed on, and granularity 'channel' has no group size at all."""
    assert config_group(scheme(granularity="group", group_size=64))["weights"]["group_size"] == 64
    assert config_group(scheme(granularity="channel", group_size=64))["weights"]["group_size"] is None


def test_smoothing_comes_first() -> None:
    """SmoothQuant smooths with the scheme's strength, then GPTQ quantizes to W8A8."""
    recipe = make_recipe(
        scheme(method="smoothquant", weights="int8", activations="int8", dynamic=True, smoothing_strength=0.8)
    )
    assert [name for name, _ in recipe] == ["SmoothQuantModifier", "GPTQModifier"]
    assert recipe[0][1] == {"smoothing_strength": 0.8}


def test_awq_scales_before_rounding() -> None:
    """AWQ only scales; a modifier that rounds follows it."""
    recipe = make_recipe(scheme(method="awq", symmetric=False, granularity="group", group_size=64))
    assert [name for name, _ in recipe] == ["AWQModifier", "QuantizationModifier"]
    assert recipe[1][1]["config_groups"]["group_0"]["weights"]["symmetric"] is False


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"damping": 0.1}, {"dampening_frac": 0.1}),
        ({"activation_order": True}, {"actorder": "static"}),
        ({"activation_order": False}, {"actorder": None}),
    ],
)
def test_gptq_settings_are_passed_only_where_given(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """A setting that the scheme does not have keeps the tool's default; the others are passed on."""
    ((_, settings),) = make_recipe(scheme(**fields))
    assert {key: settings[key] for key in settings if key not in ("config_groups", "ignore")} == expected


PRESETS = {
    "nvfp4": "NVFP4",
    "nvfp4-w4a16": "NVFP4A16",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "fp8-block": "FP8_BLOCK",
    "w4a8-fp8": "W4AFP8",
    "fp8-dynamic": "FP8_DYNAMIC",
}


@pytest.mark.parametrize("name", PRESETS)
def test_formats_are_those_of_the_presets(name: str) -> None:
    """Bits, groups, blocks and types of scales are those of compressed-tensors' presets."""
    presets = pytest.importorskip("compressed_tensors.quantization")
    found = find_scheme(name)
    assert found
    group = config_group(found)
    preset = presets.preset_name_to_scheme(PRESETS[name], ["Linear"])
    ours = presets.QuantizationScheme(**{**group, "format": None})
    assert ours.weights == preset.weights
    inputs = preset.input_activations
    if inputs is not None:
        assert ours.input_activations.model_copy(update={"observer": inputs.observer}) == inputs
    else:
        assert ours.input_activations is None


def test_mappings_and_the_kv_cache_are_passed_on() -> None:
    """Mappings have the form of each modifier, and the KV cache one static scale per layer."""
    mappings = (ScaleMapping(smooth="re:.*norm", balance=("re:.*q_proj", "re:.*k_proj")),)
    awq = make_recipe(scheme(method="awq", granularity="group", group_size=64, mappings=mappings))
    smoothed = make_recipe(scheme(method="smoothquant", mappings=mappings, smoothing_strength=0.5, kv_cache="fp8_e4m3"))
    balance = ["re:.*q_proj", "re:.*k_proj"]
    assert awq[0][1] == {"mappings": [{"smooth_layer": "re:.*norm", "balance_layers": balance}]}
    assert smoothed[0][1] == {"mappings": [[balance, "re:.*norm"]], "smoothing_strength": 0.5}
    cache = smoothed[1][1]["kv_cache_scheme"]
    assert (cache["num_bits"], cache["type"], cache["strategy"], cache["dynamic"]) == (8, "float", "tensor", False)


def test_recipes_are_plain_data() -> None:
    """A recipe survives a round trip through JSON, as in the metadata file."""
    recipe = make_recipe(scheme(method="smoothquant", weights="int8", activations="int8", dynamic=True))
    assert json.loads(json.dumps(recipe)) == [[name, settings] for name, settings in recipe]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sparsegpt"}, "'s': llmcompressor has no method 'sparsegpt'"),
        (
            {"weights": "int3"},
            "'s': llmcompressor does not support weights 'int3': choose int4, int8, fp8_e4m3, nvfp4, mxfp4, mxfp8.",
        ),
        ({"activations": "int5"}, "'s': llmcompressor does not support activations 'int5'"),
        ({"granularity": "row"}, "'s': llmcompressor does not support granularity 'row'"),
        ({"granularity": "block"}, "'s': granularity 'block' needs group_size"),
        ({"granularity": "block", "group_size": 128}, "'s': granularity: 'block' requires weights 'fp8_e4m3'"),
        ({"kv_cache": "nvfp4"}, "'s': llmcompressor does not support kv_cache 'nvfp4': choose fp8_e4m3."),
        ({"granularity": "group"}, "'s': granularity 'group' needs group_size"),
        ({"method": "awq", "granularity": "tensor"}, "'s': awq needs scales per channel or group"),
    ],
)
def test_unsupported_schemes_are_refused(fields: dict[str, Any], message: str) -> None:
    """A scheme that llmcompressor does not support is refused with one message before anything is loaded."""
    with pytest.raises(UserInputError) as refusal:
        make_recipe(scheme(**fields))
    assert str(refusal.value).startswith(message)
