"""Soft caps of attention logits: which models have them, and so need an attention implementation that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcq.catalog.model_config import ModelConfig

_KEY = "attn_logit_softcapping"


def caps_attention(config: Mapping[str, Any]) -> bool:
    """Return whether the attention logits of a model are capped (Gemma-2: 50 tanh(x / 50)).

    transformers' default `sdpa` has no caps and ignores them (5.17): the log-likelihoods of a small random Gemma-2
    differed by 0.022 nats. It would also ignore attention sinks, but transformers uses `eager` for models with sinks.

    Args:
        config: Content of a config.json.
    """
    text = config.get("text_config")
    values = text if isinstance(text, dict) else config
    return bool(ModelConfig(values, str(values.get("model_type"))).get(_KEY))
