"""Attention that vLLM (0.32) computes in another way than transformers (5.17), by design of both.

Measured with log-likelihoods of small models in float32 (tests/models/family_scores.py); other families agree.
"""

from __future__ import annotations

from typing import Any

_WIDER_WINDOWS = ("cohere2",)
"""Families whose window vLLM makes one token wider, as in training; transformers does not (0.03 to 0.3 nats)."""

_ALIBI_IN_BFLOAT16 = ("falcon",)
"""Families whose ALiBi biases transformers rounds to bfloat16, and vLLM does not (0.02 nats)."""


def attention_difference(config: Any, max_length: int) -> str:
    """Return what vLLM computes in another way than transformers; '' if nothing.

    Args:
        config: Configuration of the text model.
        max_length: Maximum length of prompt and text in tokens.
    """
    family, window = getattr(config, "model_type", ""), getattr(config, "sliding_window", None)
    if family in _WIDER_WINDOWS and window and max_length > window:
        return f"windows of {window + 1} tokens in vLLM, of {window} in transformers (texts above {window} tokens)"
    if family in _ALIBI_IN_BFLOAT16 and getattr(config, "alibi", False):
        return "ALiBi biases in float32 in vLLM, in bfloat16 in transformers"
    return ""
