"""KV cache of shared prefixes, behind transformers' cache interface (5.17), with as few copies as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache

KeyValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each [1, heads, tokens, head size], on the layer's own device."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class CachedPrefix:
    """Keys and values of the last tokens of a prefix.

    Attributes:
        chain: Cache ids of the whole prefix from position 0, with its own at the end.
        start: First position of its own tokens.
        end: Position after its last token.
        layers: Keys and values of its own tokens, by layer.
    """

    chain: tuple[int, ...]
    start: int
    end: int
    layers: Sequence[KeyValues]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RowSlice:
    """Location of a row's new tokens in the tensors of a pass: packed row, and range of columns."""

    packed_row: int
    begin: int
    end: int


class PackedCacheLayer(CacheLayerMixin):
    """Cache of one layer for one pass: joins each packed row's cached prefixes and new tokens, and stores the new ones.

    The joined tensors exist only while the layer is computed. Nothing is dropped outside a sliding window: masks decide
    what is visible, and another row can start where the window still reaches.
    """

    is_sliding = False

    def __init__(self, prefixes: Sequence[Sequence[KeyValues]]) -> None:
        """Prepare the layer.

        Args:
            prefixes: Keys and values of the cached prefixes of each packed row, in the order of its chain.
        """
        super().__init__()
        self._prefixes = prefixes
        self._prefix_length = max(sum(keys.shape[-2] for keys, _ in cached) for cached in prefixes)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: there is nothing to allocate."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of all packed rows: cached ones, padded to the longest prefix, then new ones."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True
        if not self._prefix_length:
            return key_states, value_states
        return self._joined(0, key_states), self._joined(1, value_states)

    def _joined(self, which: int, new: torch.Tensor) -> torch.Tensor:
        if len(self._prefixes) == 1:
            return torch.cat([*(tensors[which] for tensors in self._prefixes[0]), new], dim=-2)
        rows, heads, tokens, size = new.shape
        joined = new.new_zeros(rows, heads, self._prefix_length + tokens, size)
        joined[:, :, self._prefix_length :] = new
        for row, cached in enumerate(self._prefixes):
            begin = 0
            for tensors in cached:
                end = begin + tensors[which].shape[-2]
                joined[row, :, begin:end] = tensors[which][0]
                begin = end
        return joined

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys, and the index of the first one."""
        return self._prefix_length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of keys: those before this pass, and those of this pass once it is computed."""
        return self._prefix_length + (self.keys.shape[-2] if self.is_initialized else 0)

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def new_key_values(self, row: RowSlice) -> KeyValues:
        """Return a copy of the keys and values of one row's new tokens."""
        return self._copy(self.keys, row), self._copy(self.values, row)

    @staticmethod
    def _copy(tensor: torch.Tensor, row: RowSlice) -> torch.Tensor:
        view = tensor[row.packed_row : row.packed_row + 1, :, row.begin : row.end]
        return view.clone(memory_format=torch.contiguous_format)


def make_cache(
    num_layers: int, packed_rows: Sequence[Sequence[int]], cached: Mapping[int, CachedPrefix]
) -> DynamicCache:
    """Return a cache for one pass.

    Args:
        num_layers: Layers of the model.
        packed_rows: Cache ids of the prefixes of each packed row.
        cached: Cached prefixes by cache id.
    """
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [
        PackedCacheLayer([[cached[cache_id].layers[layer] for cache_id in chain] for chain in packed_rows])
        for layer in range(num_layers)
    ]
    return cache
