"""Whether a loaded model may score from shared prefixes: what its configuration says, and what a trial says.

Knows transformers' configurations (5.17) and compressed-tensors' (0.19); must not know tasks, requests or files.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import CHUNKED, FULL, KNOWN, SLIDING, attention_of
from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.planner import schedule
from hpcq.evaluate.prefix.radix_tree import Ask

_EXAMPLES = "Question: What do clouds let fall?\nAnswer: rain\n\nQuestion: What do cows give?\nAnswer: milk\n\n"
_CHOICES = (" ice", " milk", " ice cream", " ice cubes, of course", " water and salt")
TRIAL = tuple(
    (f"{_EXAMPLES}Question: {question}\nAnswer:", choice)
    for question in ("What is made of cold water?", "What do we drink?")
    for choice in _CHOICES
)
"""Contexts and continuations as tasks have them: prefixes within prefixes, choices of one token, choices that begin
alike."""

# How far a log-likelihood of a few tokens may be from the plain one: low precision rounds another way in a batch of
# another shape. Wrong positions or masks differ by several units.
_TOLERANCES = {"float64": 1e-4, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
_LEAST_PRECISE = 0.5

# Frequencies of these follow the length of the text at hand: a prefix does not know what it will be a part of.
_ROPES_THAT_LOOK_AHEAD = ("dynamic", "longrope")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MASKED_ATTENTIONS = ("sdpa", "eager")
# What the module of a model imports that makes such masks. A trial shorter than the window would not tell.
_MASK_MAKERS = {SLIDING: "create_sliding_window_causal_mask", CHUNKED: "create_chunked_causal_mask"}


def why_not(model: Any) -> str | None:
    """The reason for which `model` cannot score from shared prefixes, as far as its configuration tells."""
    return next(_reasons(model, model.config.get_text_config(decoder=True)), None)


def _reasons(model: Any, config: Any) -> Iterator[str]:
    for kind in attention_of(config).kinds:
        if kind not in KNOWN:
            yield f"layers of the kind {kind} keep a state that cannot be shared"
        elif kind != FULL and not _makes_masks(model, kind):
            yield f"its configuration tells of {kind}, and its code does not"
    if getattr(config, "num_kv_shared_layers", None):
        yield "some of its layers use the keys and values of others"
    if getattr(config, "use_bidirectional_attention", None):
        yield "its attention looks ahead"
    if config._attn_implementation not in _MASKED_ATTENTIONS:  # noqa: SLF001  # there is no public name for it
        yield f"the attention {config._attn_implementation!r} takes no mask of ours"  # noqa: SLF001
    for rope in _named(getattr(config, "rope_parameters", None) or {}, "rope_type"):
        if rope in _ROPES_THAT_LOOK_AHEAD:
            yield f"its {rope} rotary embedding depends on the length of the whole text"
    has_experts = any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)
    yield from _reasons_of_quantization(_settings_of(model), has_experts=has_experts)


def _makes_masks(model: Any, kind: str) -> bool:
    return any(hasattr(sys.modules[type(part).__module__], _MASK_MAKERS[kind]) for part in model.modules())


def _settings_of(model: Any) -> Mapping[str, Any]:
    """How it was quantized; empty if it was not."""
    settings = getattr(model.config, "quantization_config", None) or {}
    return settings if isinstance(settings, Mapping) else settings.to_dict()


def _reasons_of_quantization(settings: Mapping[str, Any], *, has_experts: bool) -> Iterator[str]:
    """Activations that are quantized together with whatever else is computed at the time give no exact answer."""
    if settings.get("load_in_8bit"):
        yield "LLM.int8() treats a text's activations by what else is computed at the time"
    for group in (settings.get("config_groups") or {}).values():
        inputs = group.get("input_activations") or {}
        # compressed-tensors 0.19 takes one scale for all of a tensor without a dimension of tokens, as experts see it.
        is_shared = inputs.get("strategy") == "tensor" or (has_experts and inputs.get("strategy") == "token")
        if inputs.get("dynamic") and is_shared:
            yield "one dynamic scale quantizes the activations of all that is computed at the time"


def _named(settings: Mapping[str, Any], name: str) -> Iterator[str]:
    """The values of `name` in a tree of settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named(value, name)
        elif key == name:
            yield str(value)


def tolerance(model: Any) -> float:
    """The largest difference in a trial that is rounding."""
    settings = _settings_of(model)
    if settings and settings.get("quant_method") != "compressed-tensors":
        return _LEAST_PRECISE
    return _TOLERANCES.get(str(model.dtype).removeprefix("torch."), _LEAST_PRECISE)


@contextlib.contextmanager
def exact_activations(model: Any) -> Iterator[None]:
    """compressed-tensors (0.19) leaves activations as they are.

    With quantized ones a trial tells nothing: a rounding decides between two steps somewhere, and that grows.
    SmolLM2-135M in FP8, one text at a time, differs by 1.1 between two kernels of attention, and by 1e-5 without.
    """
    quantized = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    for module in quantized:
        module.quantization_enabled = False
    try:
        yield
    finally:
        for module in quantized:
            module.quantization_enabled = True


def trial(engine: Engine, asks: Sequence[Ask], expected: Sequence[float]) -> float:
    """The largest difference between log-likelihoods from shared prefixes and the expected ones."""
    # As if a pass cost next to nothing, so that even short prefixes are worth sharing.
    plan = schedule(asks, Limits(pass_tokens=4))
    found = {answer.ask: answer.loglikelihood for answer in engine.score(plan)}
    return float(np.max([abs(found[number] - value) for number, value in enumerate(expected)]))  # NaN, if one is
