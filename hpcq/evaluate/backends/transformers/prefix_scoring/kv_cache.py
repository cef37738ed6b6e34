"""Kept prefixes: their keys and values, and the cache that shows them to a model without copying more than it must.

Knows transformers' cache interface (5.17); must not know which model it serves, nor whose prefixes these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache

Tensors = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, heads, tokens, size]; on the layer's own device."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Kept:
    """The tokens at positions `start` to `end` of a prefix. chain: the kept ones before it, and itself, by number."""

    chain: tuple[int, ...]
    start: int
    end: int
    layers: Sequence[Tensors]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Place:
    """Where a row's new tokens stand in the tensors of a pass."""

    lane: int
    begin: int
    end: int


class LayerOfLanes(CacheLayerMixin):
    """One layer's cache for one pass: shows each lane its kept prefixes and the new tokens, and holds on to the new.

    The joined tensors live for as long as the layer is computed. Nothing is dropped outside a sliding window: masks
    tell what is seen, and another row may begin where the window still reaches.
    """

    is_sliding = False

    def __init__(self, before: Sequence[Sequence[Tensors]]) -> None:
        super().__init__()
        self._before = before
        self._length = max(sum(keys.shape[-2] for keys, _ in lane) for lane in before)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values that the lanes see: the kept ones, padded to the most that one has, and the new."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True
        if not self._length:
            return key_states, value_states
        return self._joined(0, key_states), self._joined(1, value_states)

    def _joined(self, which: int, new: torch.Tensor) -> torch.Tensor:
        if len(self._before) == 1:
            return torch.cat([*(tensors[which] for tensors in self._before[0]), new], dim=-2)
        lanes, heads, tokens, size = new.shape
        joined = new.new_zeros(lanes, heads, self._length + tokens, size)
        joined[:, :, self._length :] = new
        for lane, before in enumerate(self._before):
            begin = 0
            for tensors in before:
                end = begin + tensors[which].shape[-2]
                joined[lane, :, begin:end] = tensors[which][0]
                begin = end
        return joined

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of keys, and the first one's place."""
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        """Keys before this pass; with it, once it was computed."""
        return self._length + (self.keys.shape[-2] if self.is_initialized else 0)

    def get_max_length(self) -> int:
        """There is none."""
        return -1

    def new(self, place: Place) -> Tensors:
        """What one row's tokens added, in memory of its own."""
        return self._own(self.keys, place), self._own(self.values, place)

    @staticmethod
    def _own(tensor: torch.Tensor, place: Place) -> torch.Tensor:
        cut = tensor[place.lane : place.lane + 1, :, place.begin : place.end]
        return cut.clone(memory_format=torch.contiguous_format)


def cache_of(layers: int, lanes: Sequence[Sequence[int]], kept: Mapping[int, Kept]) -> DynamicCache:
    """A cache of `layers` layers that shows each lane the kept prefixes it names."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [
        LayerOfLanes([[kept[prefix].layers[layer] for prefix in lane] for lane in lanes]) for layer in range(layers)
    ]
    return cache
