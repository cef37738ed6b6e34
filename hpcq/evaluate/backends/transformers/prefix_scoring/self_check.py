"""Check whether a loaded model supports scoring from shared prefixes, by its configuration and by a self-check.

Uses the configurations of transformers (5.17) and compressed-tensors (0.19).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import (
    CHUNKED,
    FULL,
    SLIDING,
    SUPPORTED_KINDS,
    attention_kinds,
)
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import plan_passes
from hpcq.evaluate.prefix.radix_tree import TokenRequest

_EXAMPLES = "Question: What do clouds let fall?\nAnswer: rain\n\nQuestion: What do cows give?\nAnswer: milk\n\n"
_CHOICES = (" ice", " milk", " ice cream", " ice cubes, of course", " water and salt")
SELF_CHECK = tuple(
    (f"{_EXAMPLES}Question: {question}\nAnswer:", choice)
    for question in ("What is made of cold water?", "What do we drink?")
    for choice in _CHOICES
)
"""Contexts and continuations like those of tasks: nested prefixes, choices of one token, choices with a common
beginning."""

# Largest difference of a log-likelihood of a few tokens that is rounding: low precision rounds differently in a batch
# of another shape. Wrong positions or masks cause differences of several units.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
_LOWEST_PRECISION_TOLERANCE = 0.5

# Their frequencies depend on the length of the whole text, which is unknown while a prefix is computed.
_LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MASKED_ATTENTIONS = ("sdpa", "eager")
# Function that a model's module imports if it makes such masks. The texts of the self-check can be shorter than the
# window, so it would not detect a missing mask.
_MASK_MAKERS = {SLIDING: "create_sliding_window_causal_mask", CHUNKED: "create_chunked_causal_mask"}


def unsupported_reason(model: Any) -> str | None:
    """Return why `model` cannot score from shared prefixes according to its configuration; None if nothing is found."""
    return next(_unsupported_reasons(model, model.config.get_text_config(decoder=True)), None)


def _unsupported_reasons(model: Any, config: Any) -> Iterator[str]:
    for kind in attention_kinds(config).kinds:
        if kind not in SUPPORTED_KINDS:
            yield f"layers of the kind {kind} keep a state that cannot be shared"
        elif kind != FULL and not _makes_masks(model, kind):
            yield f"its configuration has {kind}, but its code makes no such masks"
    if getattr(config, "num_kv_shared_layers", None):
        yield "some of its layers use the keys and values of other layers"
    if getattr(config, "use_bidirectional_attention", None):
        yield "its attention is bidirectional"
    if config._attn_implementation not in _MASKED_ATTENTIONS:  # noqa: SLF001  # there is no public name for it
        yield f"the attention {config._attn_implementation!r} accepts no custom mask"  # noqa: SLF001
    for rope in _values_of(getattr(config, "rope_parameters", None) or {}, "rope_type"):
        if rope in _LENGTH_DEPENDENT_ROPES:
            yield f"its {rope} rotary embedding depends on the length of the whole text"
    has_experts = any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)
    yield from _unsupported_quantization(_quantization_config(model), has_experts=has_experts)


def _makes_masks(model: Any, kind: str) -> bool:
    return any(hasattr(sys.modules[type(part).__module__], _MASK_MAKERS[kind]) for part in model.modules())


def _quantization_config(model: Any) -> Mapping[str, Any]:
    """Return the quantization configuration; empty for an unquantized model."""
    settings = getattr(model.config, "quantization_config", None) or {}
    return settings if isinstance(settings, Mapping) else settings.to_dict()


def _unsupported_quantization(settings: Mapping[str, Any], *, has_experts: bool) -> Iterator[str]:
    """Yield the reasons why activations of a text depend on the rest of the batch, so that no result is exact."""
    if settings.get("load_in_8bit"):
        yield "LLM.int8() quantizes the activations of a text depending on the rest of the batch"
    for group in (settings.get("config_groups") or {}).values():
        inputs = group.get("input_activations") or {}
        # compressed-tensors 0.19 uses one scale for a whole tensor without a token dimension, as experts get it.
        is_shared = inputs.get("strategy") == "tensor" or (has_experts and inputs.get("strategy") == "token")
        if inputs.get("dynamic") and is_shared:
            yield "one dynamic scale quantizes the activations of a whole batch"


def _values_of(settings: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the values of `name` in nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _values_of(value, name)
        elif key == name:
            yield str(value)


def tolerance(model: Any) -> float:
    """Return the largest difference of a log-likelihood that is rounding."""
    settings = _quantization_config(model)
    if settings and settings.get("quant_method") != "compressed-tensors":
        return _LOWEST_PRECISION_TOLERANCE
    return _TOLERANCES.get(str(model.dtype).removeprefix("torch."), _LOWEST_PRECISION_TOLERANCE)


@contextlib.contextmanager
def unquantized_activations(model: Any) -> Iterator[None]:
    """Disable the quantization of activations by compressed-tensors (0.19).

    With quantized activations the self-check would show nothing: a rounding difference selects another step of the
    grid, and the difference grows through the layers. SmolLM2-135M in FP8, one text at a time, differs by 1.1 between
    two attention kernels, and by 1e-5 without quantized activations.
    """
    quantized = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    for module in quantized:
        module.quantization_enabled = False
    try:
        yield
    finally:
        for module in quantized:
            module.quantization_enabled = True


def self_check(engine: Engine, requests: Sequence[TokenRequest], expected: Sequence[float]) -> float:
    """Return the largest difference between log-likelihoods from shared prefixes and the expected ones."""
    # With a low overhead per pass, even short prefixes are shared.
    plan = plan_passes(requests, Budget(pass_overhead_tokens=4))
    found = {scored.request: scored.loglikelihood for scored in engine.score(plan)}
    return float(np.max([abs(found[number] - value) for number, value in enumerate(expected)]))  # NaN if one is NaN
