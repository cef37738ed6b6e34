"""Formats of checkpoints that others quantized: schemes from what other tools write, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.checkpoint_formats import CheckpointFormatError, checkpoint_scheme, find_declaration
from hpcq.catalog.kernels import find_kernel
from hpcq.core.addressing import canonical
from hpcq.core.work_records import Checkpoint, Model, Scheme, Variant

FP8_INPUT = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False, "symmetric": True}
INT4_GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}


def compressed(weights: object, inputs: object = None, **more: object) -> dict[str, Any]:
    """The quantization_config of compressed-tensors for one group of layers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    formats = {"format": "float-quantized", "ignore": ["lm_head"], "quant_method": "compressed-tensors"}
    return {**formats, "config_groups": {"group_0": group}, **more}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "GEMM"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


MXFP8 = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
KV_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


def test_newer_formats_are_read(tmp_path: Path) -> None:
    """MXFP8, and a static FP8 KV cache: the address of a checkpoint without one does not change."""
    mxfp8 = compressed(MXFP8, {**MXFP8, "dynamic": True}, format="mxfp8-quantized")
    found = scheme_of(tmp_path / "a", mxfp8)
    assert (found.name, found.weights, found.activations, found.group_size) == ("mxfp8 (org)", "mxfp8", "mxfp8", 32)
    cached = scheme_of(tmp_path / "b", compressed(FP8_CHANNEL, FP8_INPUT, kv_cache_scheme=KV_CACHE))
    assert (cached.name, cached.kv_cache) == ("fp8-dynamic-kv8 (org)", "fp8_e4m3")
    plain = scheme_of(tmp_path / "c", compressed(FP8_CHANNEL, FP8_INPUT))
    assert "kv_cache" not in canonical(plain)


def scheme_of(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> Scheme:
    """The scheme of a checkpoint with this quantization_config and these other files."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    declaration = find_declaration(folder)
    assert declaration
    return checkpoint_scheme(declaration, "org")


@pytest.mark.parametrize(
    ("config", "name", "weights", "activations", "granularity", "group_size"),
    [
        (compressed(FP8_CHANNEL, FP8_INPUT), "fp8-dynamic", "fp8_e4m3", "fp8_e4m3", "channel", None),
        (
            compressed({**FP8_CHANNEL, "strategy": "tensor"}, {**FP8_INPUT, "strategy": "tensor", "dynamic": False}),
            *("fp8", "fp8_e4m3", "fp8_e4m3", "tensor", None),
        ),
        (
            compressed({**FP8_CHANNEL, "strategy": "block", "block_structure": [128, 128]}, FP8_INPUT),
            *("fp8-block", "fp8_e4m3", "fp8_e4m3", "block", 128),
        ),
        (compressed(INT4_GROUP, format="pack-quantized"), "w4a16-g128", "int4", "bf16", "group", 128),
        (
            compressed({**FP8_CHANNEL, "type": "int"}, {**FP8_INPUT, "type": "int"}, format="int-quantized"),
            *("w8a8", "int8", "int8", "channel", None),
        ),
        (compressed(INT4_GROUP, FP8_INPUT, format="pack-quantized"), "w4a8-fp8-g128", "int4", "fp8_e4m3", "group", 128),
        (compressed(NVFP4, {**NVFP4, "dynamic": "local"}), "nvfp4", "nvfp4", "nvfp4", "group", 16),
        (compressed(NVFP4, format="nvfp4-pack-quantized"), "nvfp4-w4a16", "nvfp4", "bf16", "group", 16),
        (compressed(MXFP4, {**MXFP4, "dynamic": True}), "mxfp4", "mxfp4", "mxfp4", "group", 32),
        (GPTQ, "gptq-w4a16-g128", "int4", "bf16", "group", 128),
        ({**GPTQ, "bits": 8, "group_size": -1}, "gptq-w8a16", "int8", "bf16", "channel", None),
        (AWQ, "awq-w4a16-g64", "int4", "bf16", "group", 64),
        (NF4, "nf4", "nf4", "bf16", "group", 64),
        ({"load_in_8bit": True}, "llm-int8", "int8", "int8", "channel", None),
        (
            {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
            *("fp8-block", "fp8_e4m3", "fp8_e4m3", "block", 128),
        ),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", "fp8_e4m3", "fp8_e4m3", "tensor", None),
        ({"quant_method": "fbgemm_fp8"}, "fp8-dynamic", "fp8_e4m3", "fp8_e4m3", "channel", None),
        ({"quant_method": "mxfp4"}, "mxfp4-w4a16", "mxfp4", "bf16", "group", 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4", "nvfp4", "group", 16),
    ],
)
def test_a_scheme_is_derived_from_the_configuration(
    tmp_path: Path,
    config: dict[str, Any],
    name: str,
    weights: str,
    activations: str,
    granularity: str,
    group_size: int | None,
) -> None:
    """Number formats, granularity and group size follow from quantization_config; the name has the publisher."""
    scheme = scheme_of(tmp_path, config)
    assert scheme.name == f"{name} (org)"
    assert (scheme.weights, scheme.activations) == (weights, activations)
    assert (scheme.granularity, scheme.group_size) == (granularity, group_size)
    assert scheme.is_quantized
    assert not Variant(model=Model(id="org/base"), scheme=scheme, checkpoint=Checkpoint(id="org/x")).is_quantized_here


@pytest.mark.parametrize(
    ("extra", "tool"),
    [
        ({}, "gptq"),
        ({"meta": {"quantizer": ["gptqmodel:7.6.0"]}}, "gptqmodel"),
        ({"autoround_version": "0.15.1", "provider": "auto-round"}, "auto-round"),
    ],
)
def test_the_tool_is_named_where_it_is_recorded(tmp_path: Path, extra: dict[str, Any], tool: str) -> None:
    """The tool is the one that the configuration records, or else the method."""
    assert scheme_of(tmp_path, {**GPTQ, **extra}).tool == tool


def test_files_of_older_tools_are_read(tmp_path: Path) -> None:
    """Without quantization_config, the files of AutoGPTQ, AutoAWQ and ModelOpt declare the scheme."""
    autogptq = {"bits": 4, "group_size": 128, "sym": False, "desc_act": False}
    awq = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    modelopt = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    assert not scheme_of(tmp_path / "a", {}, quantize_config=autogptq).symmetric
    assert scheme_of(tmp_path / "b", {}, quant_config=awq).name == "awq-w4a16-g128 (org)"
    found = scheme_of(tmp_path / "c", {}, hf_quant_config=modelopt)
    assert (found.name, found.tool, found.ignore) == ("fp8 (org)", "modelopt", ("lm_head",))


def test_an_early_compression_config_is_read(tmp_path: Path) -> None:
    """`compression_config` of early compressed-tensors, with its settings nested once more, declares the scheme."""
    nested = {"quantization_config": compressed(FP8_CHANNEL, FP8_INPUT, format="naive-quantized")}
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": nested}))
    declaration = find_declaration(tmp_path)
    assert declaration
    assert checkpoint_scheme(declaration, "org").name == "fp8-dynamic (org)"


def test_an_unquantized_checkpoint_declares_nothing(tmp_path: Path) -> None:
    """A checkpoint without any declaration is unquantized."""
    (tmp_path / "config.json").write_text("{}")
    assert find_declaration(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "new"}, r"quantization_config\.quant_method in config\.json: 'new' is an unknown format"),
        ({"quant_method": "hqq"}, "'hqq' is a format that no backend loads"),
        ({"bits": 4}, "quant_method in config.json: is missing; supported are"),
        (
            {**GPTQ, "bits": 5},
            r"quantization_config\.bits in config\.json: 5 is not supported; supported are 2, 3, 4, 8",
        ),
        ({"quant_method": "gptq"}, "bits in config.json: null is not supported"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format in config.json: 'marlin' is not supported"),
        ({**GPTQ, "dynamic": {"+:.*up.*": {"bits": 8}}}, "other formats for some modules cannot be evaluated"),
        ({**GPTQ, "group_size": 0}, "group_size in config.json: 0 is not a group size"),
        ({**AWQ, "version": "gemv"}, "version in config.json: 'gemv' is not supported"),
        ({**NF4, "bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type in config.json: 'nf3' is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt in config.json: 'e5m2' is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [1, 128]}, "supported are square blocks"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo in config.json: 'W4A8_AWQ'"),
        (compressed(INT4_GROUP, format="marlin-24"), "format in config.json: 'marlin-24' is not supported"),
        (
            compressed(INT4_GROUP, kv_cache_scheme=FP8_INPUT),
            "only static FP8 with one scale per layer can be evaluated",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
            "a quantized KV cache cannot be evaluated",
        ),
        (compressed({**MXFP8, "group_size": 64}, MXFP8), "8-bit float with scales per group is not supported"),
        (compressed(INT4_GROUP, sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format"),
        (compressed({**INT4_GROUP, "num_bits": "x"}), r"config_groups\.group_0\.weights in config\.json: x-bit int"),
        (compressed({**INT4_GROUP, "num_bits": 3}), r"config_groups\.group_0\.weights in config\.json: 3-bit int"),
        (
            compressed(INT4_GROUP, config_groups={"a": {"weights": INT4_GROUP}, "b": {"weights": FP8_CHANNEL}}),
            "several groups with different formats cannot be evaluated",
        ),
        (compressed(INT4_GROUP, ignore="lm_head"), "ignore in config.json: must be a list of module names"),
    ],
)
def test_what_is_unknown_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """An unknown format, key or value is refused with its key, its file and what is supported."""
    with pytest.raises(CheckpointFormatError, match=message):
        scheme_of(tmp_path, config)


@pytest.mark.parametrize(
    ("config", "on_vllm", "on_accelerate"),
    [
        ({**GPTQ, "desc_act": False}, True, True),
        (GPTQ, False, True),  # vLLM 0.32 refuses desc_act
        ({**GPTQ, "desc_act": False, "sym": False}, False, True),
        ({**GPTQ, "desc_act": False, "bits": 3}, False, True),
        (AWQ, True, True),
        (NF4, False, True),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, True, True),
        ({"quant_method": "mxfp4"}, True, True),
        (compressed(NVFP4, {**NVFP4, "dynamic": "local"}), True, True),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, True, False),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, True, True),
    ],
)
def test_backends_load_only_their_formats(
    tmp_path: Path,
    config: dict[str, Any],
    on_vllm: bool,  # noqa: FBT001 (a parameter of the test)
    on_accelerate: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    """A kernel is found only if the backend loads the format of the files, on an H100."""
    scheme = scheme_of(tmp_path, config)
    assert (find_kernel("vllm", scheme, (9, 0)) is not None) == on_vllm
    assert (find_kernel("accelerate", scheme, (9, 0)) is not None) == on_accelerate


def test_nvfp4_is_marked_below_blackwell(tmp_path: Path) -> None:
    """Below compute capability 10.0, activations are not quantized to NVFP4, which the kernel says."""
    scheme = scheme_of(tmp_path, compressed(NVFP4, {**NVFP4, "dynamic": "local"}))
    for capability, matches in (((9, 0), False), ((10, 0), True)):
        kernel = find_kernel("vllm", scheme, capability)
        assert kernel
        assert kernel.matches_scheme == matches
