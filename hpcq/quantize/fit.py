"""Says from a `config.json` alone whether a scheme's groups divide a model's layers, before anything is loaded.

Knows the names that Llama-like configurations use; must not know the tools, and imports nothing but the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hpcq.core.work import Scheme

COMMON_GROUP_SIZES = (128, 64, 32)
"""Those that the Marlin kernels for 4-bit weights take (vLLM)."""


def check_divisibility(scheme: Scheme, config: Mapping[str, Any], model_name: str = "this model") -> str | None:
    """The sentence that refuses `scheme` for the model of `config`, or None where its groups divide every layer."""
    if scheme.granularity != "group" or not scheme.group_size:
        return None
    inputs = input_sizes(config)
    for layer, size in inputs.items():
        if size % scheme.group_size:
            reason = (
                f"'{scheme.name}' cannot quantize {model_name}: "
                f"{size} is not a multiple of {scheme.group_size} ({layer})."
            )
            return f"{reason} {_cure(scheme, inputs)}"
    return None


def input_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Inputs of each kind of linear layer, by a pattern of its name; empty where the configuration does not say."""
    text = config.get("text_config") or config
    hidden, intermediate, heads = (text.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    sizes: dict[str, int] = {}
    if hidden:
        sizes["model.layers.*.self_attn.q_proj"] = int(hidden)
    if hidden and heads:
        # Gemma, Qwen3 and others choose the heads' width freely, so that o_proj's inputs differ from the hidden size.
        sizes["model.layers.*.self_attn.o_proj"] = int(heads) * int(text.get("head_dim") or int(hidden) // int(heads))
    if intermediate:
        sizes["model.layers.*.mlp.down_proj"] = int(intermediate)
    return sizes


def _cure(scheme: Scheme, inputs: Mapping[str, int]) -> str:
    """The nearest smaller group size that divides everything, as a scheme's name."""
    for size in COMMON_GROUP_SIZES:
        if size < (scheme.group_size or 0) and not any(inputs_of % size for inputs_of in inputs.values()):
            return f"Try '{re.sub(r'-g[0-9]+$', '', scheme.name)}-g{size}'."
    return "None of the usual group sizes divides its layers: choose a scheme with scales per channel."
