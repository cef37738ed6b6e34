"""Rotary embeddings that vLLM (0.32) computes in another way than transformers.

With the kinds 'longrope' and 'dynamic', transformers selects the frequencies by the length of each text. vLLM has one
set for all texts, because the KV cache of a text must stay valid while the text grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LENGTH_DEPENDENT = ("dynamic", "longrope")


def fixed_rope(config: Any, max_length: int) -> str:
    """Return which frequencies vLLM uses for texts of all lengths; '' if they do not depend on the length.

    Args:
        config: Configuration of the text model.
        max_length: Maximum length of prompt and text in tokens. Up to the original length of the model, both libraries
            use the same frequencies.
    """
    for rope in _nested(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") not in _LENGTH_DEPENDENT:
            continue
        original = rope.get("original_max_position_embeddings") or (
            getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        )
        if max_length > original:
            return f"{rope['rope_type']} frequencies of texts above {original} tokens (maximum length {max_length})"
    return ""


def _nested(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings themselves, and those of each kind of layer."""
    yield settings
    yield from (value for value in settings.values() if isinstance(value, Mapping))
