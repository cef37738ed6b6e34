"""Masks: what a lane's layout means to each kind of attention layer, as transformers' models take it.

Knows the kinds of attention layers (transformers 5.17); must not know rows, lanes or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from hpcq.evaluate.backends.transformers.prefix_scoring.packing import Layout

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
KNOWN = (FULL, SLIDING, CHUNKED)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A model's kinds of attention layers, each once. width: of the sliding window, or of a chunk; 0 without either."""

    kinds: tuple[str, ...]
    width: int


def attention_of(config: Any) -> Attention:
    """The kinds of attention that a text model's configuration tells of."""
    kinds, settings = get_layer_types_and_kwargs(config)
    return Attention(kinds=tuple(sorted(set(kinds))), width=settings.get("sliding_window") or 0)


def masks(layouts: Sequence[Layout], attention: Attention, dtype: torch.dtype, device: torch.device) -> Any:
    """What to hand a model as its attention_mask: one mask, or one a kind of attention where it has several.

    None where every lane is a text from its very beginning: padding comes after it, and is not seen.
    """
    if all(layout.visible is None for layout in layouts):
        return None
    queries = max(len(layout.queries) for layout in layouts)
    before = max(len(layout.keys) - len(layout.queries) for layout in layouts)
    by_kind = {}
    for kind in attention.kinds:
        visible = np.zeros((len(layouts), 1, queries, before + queries), np.bool_)
        for lane, layout in enumerate(layouts):
            seen = _seen(layout, kind, attention.width)
            own, kept = len(layout.queries), len(layout.keys) - len(layout.queries)
            visible[lane, 0, :own, :kept] = seen[:, :kept]
            visible[lane, 0, :own, before : before + own] = seen[:, kept:]
        by_kind[kind] = _additive(visible, dtype, device)
    return by_kind if len(by_kind) > 1 else by_kind[attention.kinds[0]]


def _seen(layout: Layout, kind: str, width: int) -> npt.NDArray[np.bool_]:
    seen = layout.visible
    if seen is None:
        seen = np.tri(len(layout.queries), dtype=np.bool_)
    if kind == FULL:
        return seen
    queries, keys = layout.queries[:, None], layout.keys[None]
    return seen & (keys > queries - width if kind == SLIDING else keys // width == queries // width)


def _additive(visible: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zero where a key is seen, the least number elsewhere: the form that every attention of transformers' takes.

    A boolean mask would be turned into this one again in every layer.
    """
    hidden = torch.from_numpy(~visible).to(device)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
