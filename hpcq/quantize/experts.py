"""Experts as linear layers: transformers (5.17) keeps all experts of a layer in two tensors, which no tool quantizes.

llmcompressor (0.14) replaces them by one linear layer per projection and expert. A checkpoint then has one set of
tensors per expert. Transformers fuses these again when it loads them, if its conversion mapping of the family says how.
For other families it would initialize the experts at random, so these are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Scheme

_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
"""llmcompressor's names of an expert's linear layers, by the fused tensor."""


def unpack_experts(model: Any, scheme: Scheme) -> int:
    """Replace fused experts by linear layers, and name their tensors as the family's checkpoints do.

    Returns:
        Number of layers with experts.

    Raises:
        UserInputError: The experts cannot be unpacked, or transformers cannot load them in the scheme's format.
    """
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

    # Only names: llmcompressor's linearize_moe keeps all fused experts in memory until the last layer is unpacked.
    fused = [name for name, _ in get_non_linearized_moes(model)]
    if not fused:
        return 0
    family = model.config.model_type
    names = checkpoint_names(family)
    if not names:
        raise UserInputError(
            f"'{scheme.name}' cannot quantize the experts of '{family}': transformers has no format with one tensor "
            "per expert for this family, so it could not load the checkpoint: choose another model."
        )
    for name in fused:
        experts = model.get_submodule(name)
        unpacked = LinearExperts2D.get_linear_experts_cls(type(experts))
        model.set_submodule(name, unpacked.from_experts_module(experts, getattr(experts, "config", model.config)))
    _name_as_in_checkpoints(model, family, names)
    return len(fused)


def checkpoint_names(family: str) -> dict[str, str]:
    """Return the names of an expert's layers in checkpoints, by llmcompressor's names; empty: no such format."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    names: dict[str, str] = {}
    for conversion in get_checkpoint_conversion_mapping(family) or ():
        if isinstance(conversion, WeightConverter) and all(".experts.*." in one for one in conversion.source_patterns):
            fused = conversion.target_patterns[0].rpartition(".")[2]
            stored = [one.removesuffix("$").split(".")[-2] for one in conversion.source_patterns]
            names.update(zip(_PROJECTIONS.get(fused, ()), stored, strict=False))
    return names


def _name_as_in_checkpoints(model: Any, family: str, names: Mapping[str, str]) -> None:
    from llmcompressor.modeling.moe.conversion_mappings import set_save_conversion_mapping
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    kept = [one for one in get_checkpoint_conversion_mapping(family) or () if not isinstance(one, WeightConverter)]
    # Mappings are written in the direction of loading; saving applies their inverse.
    renamed = [
        WeightRenaming(source_patterns=rf"\.experts\.(\d+)\.{stored}\.", target_patterns=rf".experts.\1.{ours}.")
        for ours, stored in names.items()
    ]
    set_save_conversion_mapping(model, [*kept, *renamed])


def expert_linears(model: Any) -> set[Any]:
    """Return the linear layers of all unpacked experts."""
    import torch
    from llmcompressor.modeling.moe.linearize import get_linearized_moes

    return {
        module
        for _, experts in get_linearized_moes(model)
        for module in experts.modules()
        if isinstance(module, torch.nn.Linear)
    }


class RoutedTokens:
    """Counts how many calibration tokens the router sends to each expert.

    llmcompressor calibrates every expert with all tokens, not only with those that are sent to it. An expert
    that is sent few tokens is then quantized for inputs that it does not get in evaluations.

    Attributes:
        counts: Tokens by expert, by layer.
    """

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def counted(self, model: Any) -> Iterator[dict[str, list[int]]]:
        """Count in the block, and yield the counts of the layers that run in it; they replace earlier counts."""
        from llmcompressor.modeling.moe.linearize import get_linearized_moes

        found: dict[str, list[int]] = {}
        handles = [
            experts.register_forward_pre_hook(_count_tokens(found, name, experts.num_experts))
            for name, experts in get_linearized_moes(model)
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
            self.counts.update(found)

    def summary(self) -> dict[str, Any]:
        """Return facts for the checkpoint's metadata."""
        counts = sorted(count for layer in self.counts.values() for count in layer)
        if not counts:
            return {}
        return {
            "calibrated_with": "all tokens, also those that the router does not send to an expert",
            "experts": len(counts),
            "routed_tokens_min": counts[0],
            "routed_tokens_median": counts[len(counts) // 2],
            "routed_tokens_max": counts[-1],
            "experts_without_tokens": sum(count == 0 for count in counts),
            "experts_with_few_tokens": sum(count < FEW_TOKENS for count in counts),
        }

    def warning(self) -> str | None:
        """Return a warning if experts were sent few tokens; None: all were sent enough."""
        facts = self.summary()
        if not facts or not facts["experts_with_few_tokens"]:
            return None
        return (
            f"The router sent fewer than {FEW_TOKENS} calibration tokens to {facts['experts_with_few_tokens']} of "
            f"{facts['experts']} experts, and none to {facts['experts_without_tokens']}: they were calibrated with the "
            "tokens of other experts. More calibration text covers more experts."
        )


FEW_TOKENS = 128
"""Below about as many inputs as a quantization group has columns, an expert's own inputs say little about its errors.
An assumption, not a measurement."""


def _count_tokens(found: dict[str, list[int]], name: str, experts: int) -> Any:
    """Return a hook of experts that adds the tokens of each to `found[name]`."""
    import torch

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        if len(inputs) > 1:  # tokens, chosen experts, their weights
            chosen = torch.bincount(inputs[1].flatten(), minlength=experts)[:experts].tolist()
            found[name] = [a + b for a, b in zip(found.get(name, [0] * experts), chosen, strict=True)]

    return count
