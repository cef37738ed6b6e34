"""Support of shared prefixes by a model, according to its configuration and its modules (transformers 5.17)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.evaluate.backends.transformers.prefix_scoring.attention_probe import MASKED_ATTENTIONS
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import SUPPORTED_KINDS, attention_kinds

# Their frequencies depend on the length of the whole text, which is unknown while a prefix is computed. All texts of a
# batch get the frequencies of the longest.
_LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")


def unsupported_reason(model: Any) -> str | None:
    """Return why `model` cannot score from shared prefixes according to its configuration; None if nothing is found."""
    return next(_unsupported_reasons(model, model.config.get_text_config(decoder=True)), None)


def _unsupported_reasons(model: Any, config: Any) -> Iterator[str]:
    for kind in attention_kinds(config).kinds:
        if kind not in SUPPORTED_KINDS:
            yield f"layers of the kind {kind} keep a state that cannot be shared"
    if getattr(config, "num_kv_shared_layers", None):
        yield "some of its layers use the keys and values of other layers"
    if getattr(config, "use_bidirectional_attention", None):
        yield "its attention is bidirectional"
    if config._attn_implementation not in MASKED_ATTENTIONS:  # noqa: SLF001  # there is no public name for it
        yield f"the attention {config._attn_implementation!r} accepts no custom mask"  # noqa: SLF001
    yield from _batch_dependences(model, config)


def depends_on_batch(model: Any) -> bool:
    """Return whether the response to a request depends on the other requests in its batch, by more than rounding."""
    return any(True for _ in _batch_dependences(model, model.config.get_text_config(decoder=True)))


def _batch_dependences(model: Any, config: Any) -> Iterator[str]:
    for rope in _values_of(getattr(config, "rope_parameters", None) or {}, "rope_type"):
        if rope in _LENGTH_DEPENDENT_ROPES:
            yield f"its {rope} rotary embedding depends on the length of the whole text"
    if getattr(model, "is_loaded_in_8bit", False):
        yield "LLM.int8() quantizes the activations of a text depending on the rest of the batch"


def _values_of(settings: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the values of `name` in nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _values_of(value, name)
        elif key == name:
            yield str(value)
