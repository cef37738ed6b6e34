"""Recipes for llmcompressor: the modifiers and settings of a scheme, as plain data.

The names are those of llmcompressor 0.14 and compressed-tensors 0.19; neither is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcq.catalog.format_problems import format_problem
from hpcq.catalog.number_formats import GROUP_SIZES
from hpcq.catalog.number_formats import UNQUANTIZED as _UNQUANTIZED
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Scheme

Recipe = list[tuple[str, dict[str, Any]]]
"""Class name and settings of each modifier, in the order in which they run."""

_NUMBER_FORMATS: dict[str, tuple[str, int]] = {
    "int4": ("int", 4),
    "int8": ("int", 8),
    "fp8_e4m3": ("float", 8),
    "nvfp4": ("float", 4),
    "mxfp4": ("float", 4),
    "mxfp8": ("float", 8),
}
_SCALE_DTYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8", "mxfp8": "torch.uint8"}
"""Types of the scales in a file; uint8 are exponents of two, with a bias of 127 (E8M0). Others have the base's type."""
_KV_CACHE = {"fp8_e4m3": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}}
"""compressed-tensors' arguments by number format of the KV cache."""


def make_recipe(scheme: Scheme, ignore: Sequence[str] | None = None) -> Recipe:
    """Return the recipe of `scheme`.

    Args:
        scheme: How to quantize.
        ignore: Patterns of the modules that stay unquantized in the model; None: those of the scheme.

    Raises:
        UserInputError: llmcompressor does not support the scheme, or not with correct results.
    """
    _check_supported(scheme)
    groups = {
        "config_groups": {"group_0": config_group(scheme)},
        "ignore": list(scheme.ignore if ignore is None else ignore),
    }
    if scheme.kv_cache is not None:
        groups["kv_cache_scheme"] = dict(_KV_CACHE[scheme.kv_cache])
    mappings = {"mappings": _mappings(scheme)} if scheme.mappings else {}
    match scheme.method:
        case "rtn":
            return [("QuantizationModifier", groups)]
        case "gptq":
            return [("GPTQModifier", groups | _gptq_settings(scheme))]
        case "smoothquant":
            strength = scheme.smoothing_strength
            return [
                ("SmoothQuantModifier", mappings | ({} if strength is None else {"smoothing_strength": strength})),
                ("GPTQModifier", groups | _gptq_settings(scheme)),
            ]
        case "awq":
            # Since 0.14 AWQModifier only scales; the next modifier rounds.
            return [("AWQModifier", mappings), ("QuantizationModifier", groups)]
        case other:
            raise UserInputError(
                f"'{scheme.name}': llmcompressor has no method '{other}': choose rtn, gptq, smoothquant or awq."
            )


def rounds_activations(scheme: Scheme) -> bool:
    """Return whether the scheme quantizes activations."""
    return scheme.activations not in _UNQUANTIZED


def config_group(scheme: Scheme) -> dict[str, Any]:
    """Return the scheme's number formats as a `config_groups` entry of compressed-tensors.

    It does not use presets: W4A16 and W8A16 have a group size of 128, which does not divide the layers of every model.
    """
    kind, bits = _NUMBER_FORMATS[scheme.weights]
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": bits,
            "type": kind,
            "strategy": "tensor_group" if scheme.weights == "nvfp4" else scheme.granularity,
            "group_size": scheme.group_size if scheme.granularity == "group" else None,
            "symmetric": scheme.symmetric,
            "dynamic": False,
            **_scale_dtypes(scheme.weights),
        },
    }
    if scheme.granularity == "block":
        group["weights"]["block_structure"] = [scheme.group_size, scheme.group_size]
    if rounds_activations(scheme):
        kind, bits = _NUMBER_FORMATS[scheme.activations]
        group["input_activations"] = {
            "num_bits": bits,
            "type": kind,
            "symmetric": True,
            **_activation_scales(scheme),
            **_scale_dtypes(scheme.activations),
        }
        if scheme.weights == "int4" and scheme.activations == "fp8_e4m3":
            # By default compressed-tensors 0.19 stores one byte per weight, which vLLM's W4A8 kernel does not load.
            group["format"] = "pack-quantized"
    return group


def _activation_scales(scheme: Scheme) -> dict[str, Any]:
    """Return what the scales of activations cover: static ones a tensor, dynamic ones a token, or groups of it."""
    if scheme.activations == "nvfp4":
        # Scales of groups are computed at run time, divided by a static scale of the tensor.
        return {"strategy": "tensor_group", "group_size": 16, "dynamic": "local", "observer": "static_minmax"}
    if scheme.activations in GROUP_SIZES:
        return {"strategy": "group", "group_size": GROUP_SIZES[scheme.activations], "dynamic": True}
    if scheme.granularity == "block":
        return {"strategy": "group", "group_size": scheme.group_size, "dynamic": True}
    return {"strategy": "token" if scheme.dynamic else "tensor", "dynamic": scheme.dynamic}


def _scale_dtypes(number_format: str) -> dict[str, str]:
    """Return the types of scales and zero points that a format fixes."""
    dtype = _SCALE_DTYPES.get(number_format)
    return {"scale_dtype": dtype, "zp_dtype": dtype} if dtype else {}


def _mappings(scheme: Scheme) -> list[Any]:
    """Return the layers between which scales are moved, in the form of the method's modifier."""
    if scheme.method == "awq":
        return [{"smooth_layer": one.smooth, "balance_layers": list(one.balance)} for one in scheme.mappings]
    return [[list(one.balance), one.smooth] for one in scheme.mappings]


def _gptq_settings(scheme: Scheme) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if scheme.damping is not None:
        settings["dampening_frac"] = scheme.damping
    if scheme.activation_order is not None:
        # 'static' orders the columns but keeps the groups in place, so that kernels need no group index.
        settings["actorder"] = "static" if scheme.activation_order else None
    return settings


def _check_supported(scheme: Scheme) -> None:
    for field, value, allowed in (
        ("weights", scheme.weights, tuple(_NUMBER_FORMATS)),
        ("activations", scheme.activations, (*_NUMBER_FORMATS, *_UNQUANTIZED)),
        ("granularity", scheme.granularity, ("tensor", "channel", "group", "block")),
        ("kv_cache", scheme.kv_cache, (None, *_KV_CACHE)),
    ):
        if value not in allowed:
            raise UserInputError(
                f"'{scheme.name}': llmcompressor does not support {field} '{value}': "
                f"choose {', '.join(filter(None, allowed))}."
            )
    if scheme.granularity in ("group", "block") and not scheme.group_size:
        raise UserInputError(
            f"'{scheme.name}': granularity '{scheme.granularity}' needs group_size: set it, for example to 128."
        )
    if problem := format_problem(scheme):
        raise UserInputError(f"'{scheme.name}': {problem[0]}: {problem[1]}")
    if scheme.method == "awq" and scheme.granularity == "tensor":
        raise UserInputError(f"'{scheme.name}': awq needs scales per channel or group, not per tensor.")
