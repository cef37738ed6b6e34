"""Probe of a model's attention: which mask each attention layer computes with, read in a forward pass.

Sharing prefixes is correct only if attention is a function of queries, keys, values and the mask that a layer is given.
Models of transformers (5.17) that meet this condition call a function of its attention interface. Older models compute
attention themselves, some with a window or with biases that their configurations do not name in a uniform way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hpcq.evaluate.backends.transformers.prefix_scoring.forward import Forward
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import AttentionKinds, build_masks
from hpcq.evaluate.backends.transformers.prefix_scoring.packing import RowLayout

MASKED_ATTENTIONS = ("sdpa", "eager")
"""Implementations of attention that accept any mask."""

_Visible = npt.NDArray[np.bool_]


@dataclass(kw_only=True, eq=False)
class _Attention:
    """Attention in one forward pass: the mask of each call, as `_visible` returns it, and the calling modules."""

    masks: list[_Visible | None] = field(default_factory=list)
    modules: set[int] = field(default_factory=set)
    has_bias: bool = False


def unsupported_attention(
    model: Any, forward: Forward, attention: AttentionKinds, tokens: npt.NDArray[np.int64], num_layers: int
) -> str | None:
    """Return why the model's attention does not permit shared prefixes; None if it does.

    A text is computed twice: with the model's own masks, and with those that `build_masks` makes for it. Every layer
    must get the same mask both times. Attention itself is not computed, so a pass takes less time than in scoring.

    Args:
        model: The model.
        forward: Its forward pass.
        attention: Kinds of its attention layers.
        tokens: Token ids of a text, [tokens]; longer than the windows of the configuration.
        num_layers: Number of its layers.
    """
    positions = np.arange(len(tokens))
    layout = RowLayout(keys=positions, queries=positions, offsets=[0], visible=np.tri(len(tokens), dtype=np.bool_))
    device = model.get_input_embeddings().weight.device

    def recorded_pass(mask: Any) -> _Attention:
        with _recorded(model) as recorded:
            forward(tokens[None], np.zeros(1, np.int64), positions=positions[None], mask=mask, cache=None)
        return recorded

    own = recorded_pass(None)
    if len(own.modules) < num_layers:
        return "its layers do not use the attention functions of transformers, so they can have masks of their own"
    with_given = recorded_pass(build_masks([layout], attention, model.dtype, device))
    if own.has_bias or with_given.has_bias:
        return "its attention scores have biases that depend on the distance of tokens"
    is_same = len(own.masks) == len(with_given.masks) and all(
        _is_equal(one, other) for one, other in zip(own.masks, with_given.masks, strict=True)
    )
    if not is_same:
        return f"its own attention masks for a text of {len(tokens)} tokens are not those of its configuration"
    return None


@contextlib.contextmanager
def _recorded(model: Any) -> Iterator[_Attention]:
    """Replace the attention function of the model by one that records masks, and returns zeros."""
    name = model.config.get_text_config(decoder=True)._attn_implementation  # noqa: SLF001  # no public name
    found = _Attention()

    def record(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        found.modules.add(id(module))
        visible, has_bias = _visible(
            attention_mask, query.shape[-2], key.shape[-2], is_causal=_is_causal(module, settings)
        )
        found.masks.append(visible)
        found.has_bias |= has_bias or settings.get("position_bias") is not None
        batch, heads, queries = query.shape[:3]
        return query.new_zeros(batch, queries, heads, value.shape[-1]), None

    # The local mapping of the instance that all models share; the global one keeps the original function.
    ALL_ATTENTION_FUNCTIONS[name] = record
    try:
        yield found
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]


def _is_causal(module: Any, settings: Mapping[str, Any]) -> bool:
    given = settings.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _visible(mask: torch.Tensor | None, queries: int, keys: int, *, is_causal: bool) -> tuple[_Visible | None, bool]:
    """Return which query sees which key, [queries, keys], and whether the mask has values besides visible and hidden.

    None means that each token sees all tokens before it, the most frequent mask.
    """
    if mask is None:
        return (None if is_causal else np.ones((queries, keys), np.bool_)), False
    if mask.dtype == torch.bool:
        visible, has_bias = mask, False
    else:
        visible = mask == 0
        has_bias = bool((~visible & (mask > torch.finfo(mask.dtype).min / 2)).any())
    has_bias |= bool((visible != visible[:1, :1]).any())
    found = visible[0, 0, -queries:, :keys].cpu().numpy()
    return (None if np.array_equal(found, np.tri(queries, keys, dtype=np.bool_)) else found), has_bias


def _is_equal(one: _Visible | None, other: _Visible | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)
