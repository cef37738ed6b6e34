"""Recipes for llmcompressor: the modifiers and settings of a scheme, as plain data.

The names are those of llmcompressor 0.14 and compressed-tensors 0.19; neither is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Scheme

Recipe = list[tuple[str, dict[str, Any]]]
"""Class name and settings of each modifier, in the order in which they run."""

_NUMBER_FORMATS: dict[str, tuple[str, int]] = {
    "int4": ("int", 4),
    "int8": ("int", 8),
    "fp8_e4m3": ("float", 8),
}
_UNQUANTIZED = ("fp32", "bf16", "fp16")


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
    match scheme.method:
        case "rtn":
            return [("QuantizationModifier", groups)]
        case "gptq":
            return [("GPTQModifier", groups | _gptq_settings(scheme))]
        case "smoothquant":
            strength = scheme.smoothing_strength
            return [
                ("SmoothQuantModifier", {} if strength is None else {"smoothing_strength": strength}),
                ("GPTQModifier", groups | _gptq_settings(scheme)),
            ]
        case "awq":
            # Since 0.14 AWQModifier only scales; the next modifier rounds.
            return [("AWQModifier", {}), ("QuantizationModifier", groups)]
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
            "strategy": scheme.granularity,
            "group_size": scheme.group_size if scheme.granularity == "group" else None,
            "symmetric": scheme.symmetric,
            "dynamic": False,
        },
    }
    if rounds_activations(scheme):
        kind, bits = _NUMBER_FORMATS[scheme.activations]
        group["input_activations"] = {
            "num_bits": bits,
            "type": kind,
            # Dynamic scales are per token; a static scale is per tensor, the same for all inputs.
            "strategy": "token" if scheme.dynamic else "tensor",
            "symmetric": True,
            "dynamic": scheme.dynamic,
        }
    return group


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
        ("granularity", scheme.granularity, ("tensor", "channel", "group")),
    ):
        if value not in allowed:
            raise UserInputError(
                f"'{scheme.name}': llmcompressor does not support {field} '{value}': choose {', '.join(allowed)}."
            )
    if scheme.granularity == "group" and not scheme.group_size:
        raise UserInputError(f"'{scheme.name}': granularity 'group' needs group_size: set it, for example to 128.")
    if scheme.method == "awq" and scheme.granularity == "tensor":
        raise UserInputError(f"'{scheme.name}': awq needs scales per channel or group, not per tensor.")
