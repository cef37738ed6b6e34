"""Attention masks of packed rows, for each kind of attention layer in transformers (5.17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from hpcq.core.frozen import dataclass
from hpcq.evaluate.backends.transformers.prefix_scoring.packing import RowLayout

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
SUPPORTED_KINDS = (FULL, SLIDING, CHUNKED)


@dataclass(frozen=True, kw_only=True)
class AttentionKinds:
    """Kinds of attention layers of a model.

    Attributes:
        kinds: Each kind once, sorted.
        window: Tokens of the sliding window, or of an attention chunk; 0 without either.
    """

    kinds: tuple[str, ...]
    window: int


def attention_kinds(config: Any) -> AttentionKinds:
    """Return the kinds of attention in the configuration of a text model."""
    kinds, settings = get_layer_types_and_kwargs(config)
    return AttentionKinds(kinds=tuple(sorted(set(kinds))), window=settings.get("sliding_window") or 0)


def build_masks(
    layouts: Sequence[RowLayout], attention: AttentionKinds, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return the model's `attention_mask`: one mask, or one per kind of attention if the model has several kinds.

    None if every packed row is one text from position 0: its padding comes last and is not visible.
    """
    if all(layout.visible is None for layout in layouts):
        return None
    queries = max(len(layout.queries) for layout in layouts)
    before = max(len(layout.keys) - len(layout.queries) for layout in layouts)
    by_kind = {}
    for kind in attention.kinds:
        visible = np.zeros((len(layouts), 1, queries, before + queries), np.bool_)
        for row, layout in enumerate(layouts):
            row_visible = _visible(layout, kind, attention.window)
            own, cached = len(layout.queries), len(layout.keys) - len(layout.queries)
            visible[row, 0, :own, :cached] = row_visible[:, :cached]
            visible[row, 0, :own, before : before + own] = row_visible[:, cached:]
        by_kind[kind] = _additive(visible, dtype, device)
    return by_kind if len(by_kind) > 1 else by_kind[attention.kinds[0]]


def _visible(layout: RowLayout, kind: str, window: int) -> npt.NDArray[np.bool_]:
    visible = layout.visible
    if visible is None:
        visible = np.tri(len(layout.queries), dtype=np.bool_)
    if kind == FULL:
        return visible
    queries, keys = layout.queries[:, None], layout.keys[None]
    return visible & (keys > queries - window if kind == SLIDING else keys // window == queries // window)


def _additive(visible: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return an additive mask: 0 for a visible key, the minimum of `dtype` for others.

    All attention implementations of transformers accept this form. A boolean mask would be converted in every layer.
    """
    hidden = torch.from_numpy(~visible).to(device)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
