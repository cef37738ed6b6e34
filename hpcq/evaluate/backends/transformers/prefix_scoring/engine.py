"""Engine that runs the planned forward passes on a transformers model and sums up log-likelihoods.

On a CPU, each packed row of a pass has a forward pass of its own, because several rows together cost as much as one
by one. On a GPU all packed rows of a pass are computed in one forward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpcq.evaluate.backends.transformers.prefix_scoring.attention_probe import unsupported_attention
from hpcq.evaluate.backends.transformers.prefix_scoring.forward import Forward, Numbers, gather_logprobs
from hpcq.evaluate.backends.transformers.prefix_scoring.kv_cache import (
    CachedPrefix,
    PackedCacheLayer,
    RowSlice,
    make_cache,
)
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import attention_kinds, build_masks
from hpcq.evaluate.backends.transformers.prefix_scoring.packing import PackedRow, pack_rows, row_layout
from hpcq.evaluate.prefix.forward_pass import ForwardPass
from hpcq.evaluate.prefix.planner import PassPlan
from hpcq.evaluate.prefix.radix_tree import Tokens

_PROBED_TOKENS = 256
_TOKENS_AFTER_WINDOW = 64


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ScoredRequest:
    """Score of one request.

    Attributes:
        request: Number of the request.
        loglikelihood: Log-likelihood of the continuation.
        is_greedy: Whether every token of the continuation is the likeliest one.
    """

    request: int
    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _PartialScore:
    """Log-probabilities of consecutive tokens of one request, and whether each of them is the likeliest token."""

    request: int
    logprobs: torch.Tensor
    is_greedy: bool


class Engine:
    """Computes plans on one model.

    Attributes:
        forward: Forward pass of the model.
        kv_bytes_per_token: KV bytes per token of the row that was cached last.
    """

    def __init__(self, model: Any, *, softmax_dtype: torch.dtype | None = None, batches_rows: bool = False) -> None:
        """Prepare the model.

        Args:
            model: A causal language model of transformers.
            softmax_dtype: Type for log-probabilities; None: the type of the logits.
            batches_rows: Whether to compute all packed rows of a pass in one forward pass.
        """
        config = model.config.get_text_config(decoder=True)
        self._num_layers = config.num_hidden_layers
        self._attention = attention_kinds(config)
        self.forward = Forward(model)
        self._model = model
        self._dtype, self._device = model.dtype, model.get_input_embeddings().weight.device
        self._softmax_dtype = softmax_dtype
        self._batches_rows = batches_rows
        self._cached: dict[int, CachedPrefix] = {}
        self.kv_bytes_per_token = 1

    def unsupported_attention(self, tokens: Tokens) -> str | None:
        """Return why the model's attention to a text does not permit shared prefixes; None if it does.

        Only the beginning of the text is read, but more than the windows that the configuration names.
        """
        begin = tokens[: max(_PROBED_TOKENS, self._attention.window + _TOKENS_AFTER_WINDOW)].astype(np.int64)
        return unsupported_attention(self._model, self.forward, self._attention, begin, self._num_layers)

    def score(self, plan: PassPlan) -> Iterator[ScoredRequest]:
        """Yield the scores of all requests of `plan`, each as soon as it is complete."""
        self._cached.clear()
        logprobs: dict[int, list[torch.Tensor]] = defaultdict(list)
        is_greedy: dict[int, bool] = defaultdict(lambda: True)
        for step in plan.passes:
            for partial in self._compute(step):
                logprobs[partial.request].append(partial.logprobs)
                is_greedy[partial.request] &= partial.is_greedy
            for request in step.finished:
                total = float(torch.cat(logprobs.pop(request)).sum())
                yield ScoredRequest(request=request, loglikelihood=total, is_greedy=is_greedy.pop(request))
            for cache_id in step.evict:
                del self._cached[cache_id]

    def _compute(self, step: ForwardPass) -> list[_PartialScore]:
        """Compute one pass: cache its rows, return its log-probabilities."""
        chains = {cache_id: prefix.chain for cache_id, prefix in self._cached.items()}
        lengths = {cache_id: prefix.end - prefix.start for cache_id, prefix in self._cached.items()}
        packed_rows = pack_rows(step, chains, lengths)
        groups = [packed_rows] if self._batches_rows else [[packed] for packed in packed_rows]
        return [partial for group in groups for partial in self._compute_packed_rows(step, group)]

    def _compute_packed_rows(self, step: ForwardPass, group: Sequence[PackedRow]) -> Iterator[_PartialScore]:
        """Compute some packed rows of a pass in one forward pass of the model."""
        chains = {cache_id: prefix.chain for cache_id, prefix in self._cached.items()}
        spans = {cache_id: (prefix.start, prefix.end) for cache_id, prefix in self._cached.items()}
        layouts = [row_layout(step, packed, chains, spans) for packed in group]
        width = max(len(layout.queries) for layout in layouts)
        tokens = np.zeros((len(group), width), np.int64)
        positions = np.zeros((len(group), width), np.int64)
        # Index of each row's first token in the flattened `tokens`; -1 for rows of other groups.
        begins = np.full(len(step.rows), -1)
        for number, (packed, layout) in enumerate(zip(group, layouts, strict=True)):
            tokens[number, : len(layout.queries)] = np.concatenate([step.rows[row].tokens for row in packed.rows])
            positions[number, : len(layout.queries)] = layout.queries
            begins[list(packed.rows)] = number * width + np.array(layout.offsets)
        chains_of_group = [packed.chain for packed in group]
        cache = make_cache(self._num_layers, chains_of_group, self._cached) if step.uses_cache else None
        in_group = begins[step.gather.row] >= 0
        logit_positions = (begins[step.gather.row] + step.gather.column)[in_group]
        mask = build_masks(layouts, self._attention, self._dtype, self._device)
        logits = self.forward(tokens, logit_positions, positions=positions, mask=mask, cache=cache)
        if cache is not None:
            self._cache_rows(step, begins, width, cache.layers)
        return self._gather(step, in_group, logits)

    def _cache_rows(self, step: ForwardPass, begins: Numbers, width: int, layers: Sequence[PackedCacheLayer]) -> None:
        for row, begin in zip(step.rows, begins.tolist(), strict=True):
            if row.cache_id is None or begin < 0:
                continue
            packed_row, column = divmod(begin, width)
            row_slice = RowSlice(packed_row=packed_row, begin=column, end=column + len(row.tokens))
            ancestors = self._cached[row.parent_id].chain if row.parent_id is not None else ()
            key_values = [layer.new_key_values(row_slice) for layer in layers]
            self.kv_bytes_per_token = sum(one.nbytes for pair in key_values for one in pair) // len(row.tokens)
            self._cached[row.cache_id] = CachedPrefix(
                chain=(*ancestors, row.cache_id),
                start=row.start,
                end=row.start + len(row.tokens),
                layers=key_values,
            )

    def _gather(self, step: ForwardPass, in_group: np.ndarray, logits: torch.Tensor) -> Iterator[_PartialScore]:
        """Yield the log-probabilities that are read at the places in `in_group`, request by request."""
        numbers = np.flatnonzero(in_group[step.gather.index])
        if not len(numbers):
            return
        index = (np.cumsum(in_group) - 1)[step.gather.index[numbers]]
        logprobs, is_greedy = gather_logprobs(logits, index, step.gather.target[numbers], self._softmax_dtype)
        requests = step.gather.request[numbers]
        # The log-probabilities of one row and request are adjacent, in the order of the tokens.
        boundaries = np.flatnonzero(np.diff(requests)) + 1
        for request, part, flags in zip(
            requests[[0, *boundaries]],
            logprobs.tensor_split(boundaries.tolist()),
            is_greedy.tensor_split(boundaries.tolist()),
            strict=True,
        ):
            yield _PartialScore(request=int(request), logprobs=part, is_greedy=bool(flags.all()))
