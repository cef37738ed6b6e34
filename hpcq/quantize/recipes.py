"""Scheme → llmcompressor's modifiers and their settings, as plain data that the checkpoint's metadata can keep.

Knows the words of llmcompressor 0.14 and compressed-tensors 0.19; imports neither.
"""

from __future__ import annotations

from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.work import Scheme

Recipe = list[tuple[str, dict[str, Any]]]
"""Modifiers by class name, in the order in which they run."""

_NUMBERS: dict[str, tuple[str, int]] = {
    "int4": ("int", 4),
    "int8": ("int", 8),
    "fp8_e4m3": ("float", 8),
}
_UNQUANTIZED = ("fp32", "bf16", "fp16")


def recipe_of(scheme: Scheme) -> Recipe:
    """The modifiers that make `scheme`.

    Raises:
        UserInputError: a combination that llmcompressor cannot make, or not with a sound result.
    """
    _refuse_unsound(scheme)
    groups = {"config_groups": {"group_0": config_group(scheme)}, "ignore": list(scheme.ignore)}
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
            # Since 0.14 AWQModifier only scales; the modifier after it rounds.
            return [("AWQModifier", {}), ("QuantizationModifier", groups)]
        case other:
            raise UserInputError(
                f"'{scheme.name}': llmcompressor has no method '{other}': choose rtn, gptq, smoothquant or awq."
            )


def config_group(scheme: Scheme) -> dict[str, Any]:
    """The scheme's number formats as a `config_groups` entry of compressed-tensors.

    Written out rather than by a preset: the presets W4A16 and W8A16 mean groups of 128, which not every model's
    layers are multiples of.
    """
    kind, bits = _NUMBERS[scheme.weights]
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
    if scheme.activations not in _UNQUANTIZED:
        kind, bits = _NUMBERS[scheme.activations]
        group["input_activations"] = {
            "num_bits": bits,
            "type": kind,
            # Dynamic scales are a token's own; a static one is the tensor's, the same for all that ever comes.
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
        # 'static' orders the columns and leaves the groups where they are, so that no kernel needs an index of groups.
        settings["actorder"] = "static" if scheme.activation_order else None
    return settings


def _refuse_unsound(scheme: Scheme) -> None:
    for field, value, allowed in (
        ("weights", scheme.weights, tuple(_NUMBERS)),
        ("activations", scheme.activations, (*_NUMBERS, *_UNQUANTIZED)),
        ("granularity", scheme.granularity, ("tensor", "channel", "group")),
    ):
        if value not in allowed:
            raise UserInputError(
                f"'{scheme.name}': {field} '{value}' is not one of llmcompressor's: choose {', '.join(allowed)}."
            )
    if scheme.granularity == "group" and not scheme.group_size:
        raise UserInputError(f"'{scheme.name}': a group granularity needs group_size: give one, e.g. 128.")
    if scheme.method == "awq" and scheme.granularity == "tensor":
        raise UserInputError(f"'{scheme.name}': awq needs scales per channel or group, not per tensor.")
