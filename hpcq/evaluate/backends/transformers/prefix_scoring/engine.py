"""The engine: follows passes on one transformers model, and tells each ask's log-likelihood as soon as it is known.

Knows passes, lanes and a causal language model; must not know texts, tokenizers, tasks, or how passes were chosen.

A pass is computed lane by lane on a CPU, where a forward pass of many lanes costs what they cost one by one, and in one
forward pass on a GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpcq.evaluate.backends.transformers.prefix_scoring.forward import Forward, Numbers, read
from hpcq.evaluate.backends.transformers.prefix_scoring.kv_cache import Kept, LayerOfLanes, Place, cache_of
from hpcq.evaluate.backends.transformers.prefix_scoring.masks import attention_of, masks
from hpcq.evaluate.backends.transformers.prefix_scoring.packing import Lane, lanes, layout
from hpcq.evaluate.prefix.forward_pass import Pass
from hpcq.evaluate.prefix.planner import Schedule


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Answer:
    """The answer to one ask, by its number. is_greedy: no token of the continuation had a likelier rival."""

    ask: int
    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Found:
    """Log-probabilities of consecutive tokens of one ask, and whether no token was likelier than any of them."""

    ask: int
    values: torch.Tensor
    is_greedy: bool


class Engine:
    """Scores on `model`. softmax_dtype: what log-probabilities are computed in; None: what the logits are in.

    kv_bytes_per_token: of what it kept last.
    """

    def __init__(self, model: Any, *, softmax_dtype: torch.dtype | None = None, stacks_lanes: bool = False) -> None:
        config = model.config.get_text_config(decoder=True)
        self._layers = config.num_hidden_layers
        self._attention = attention_of(config)
        self._forward = Forward(model)
        self._dtype, self._device = model.dtype, model.get_input_embeddings().weight.device
        self._softmax_dtype = softmax_dtype
        self._stacks_lanes = stacks_lanes
        self._kept: dict[int, Kept] = {}
        self.kv_bytes_per_token = 1

    def score(self, plan: Schedule) -> Iterator[Answer]:
        """The answers to all asks of `plan`, in the order in which they are known."""
        self._kept.clear()
        values: dict[int, list[torch.Tensor]] = defaultdict(list)
        is_greedy: dict[int, bool] = defaultdict(lambda: True)
        for step in plan.passes:
            for found in self._compute(step):
                values[found.ask].append(found.values)
                is_greedy[found.ask] &= found.is_greedy
            for ask in step.finished:
                total = float(torch.cat(values.pop(ask)).sum())
                yield Answer(ask=ask, loglikelihood=total, is_greedy=is_greedy.pop(ask))
            for number in step.drops:
                del self._kept[number]

    def _compute(self, step: Pass) -> list[_Found]:
        """One pass: what is read from it is told, what it is to leave is kept."""
        chains = {number: kept.chain for number, kept in self._kept.items()}
        found = lanes(step, chains, {number: kept.end - kept.start for number, kept in self._kept.items()})
        groups = [found] if self._stacks_lanes else [[lane] for lane in found]
        return [one for group in groups for one in self._compute_lanes(step, group)]

    def _compute_lanes(self, step: Pass, group: Sequence[Lane]) -> Iterator[_Found]:
        """One forward pass."""
        chains = {number: kept.chain for number, kept in self._kept.items()}
        spans = {number: (kept.start, kept.end) for number, kept in self._kept.items()}
        layouts = [layout(step, lane, chains, spans) for lane in group]
        width = max(len(one.queries) for one in layouts)
        tokens = np.zeros((len(group), width), np.int64)
        positions = np.zeros((len(group), width), np.int64)
        # Where each of the group's rows begins, counted through all lanes.
        begins = np.full(len(step.rows), -1)
        for number, (lane, one) in enumerate(zip(group, layouts, strict=True)):
            tokens[number, : len(one.queries)] = np.concatenate([step.rows[row].tokens for row in lane.rows])
            positions[number, : len(one.queries)] = one.queries
            begins[list(lane.rows)] = number * width + np.array(one.offsets)
        cache = cache_of(self._layers, [lane.chain for lane in group], self._kept) if step.has_cache else None
        is_here = begins[step.readings.row] >= 0
        wanted = (begins[step.readings.row] + step.readings.column)[is_here]
        mask = masks(layouts, self._attention, self._dtype, self._device)
        logits = self._forward(tokens, wanted, positions=positions, mask=mask, cache=cache)
        if cache is not None:
            self._keep(step, begins, width, cache.layers)
        return self._read(step, is_here, logits)

    def _keep(self, step: Pass, begins: Numbers, width: int, layers: Sequence[LayerOfLanes]) -> None:
        for row, begin in zip(step.rows, begins.tolist(), strict=True):
            if row.keep is None or begin < 0:
                continue
            lane, column = divmod(begin, width)
            place = Place(lane=lane, begin=column, end=column + len(row.tokens))
            before = self._kept[row.parent].chain if row.parent is not None else ()
            tensors = [layer.new(place) for layer in layers]
            self.kv_bytes_per_token = sum(one.nbytes for pair in tensors for one in pair) // len(row.tokens)
            self._kept[row.keep] = Kept(
                chain=(*before, row.keep),
                start=row.start,
                end=row.start + len(row.tokens),
                layers=tensors,
            )

    def _read(self, step: Pass, is_here: np.ndarray, logits: torch.Tensor) -> Iterator[_Found]:
        """What the readings at the places that `is_here` tells of say, ask by ask."""
        readings = np.flatnonzero(is_here[step.readings.place])
        if not len(readings):
            return
        place = (np.cumsum(is_here) - 1)[step.readings.place[readings]]
        values, is_greedy = read(logits, place, step.readings.target[readings], self._softmax_dtype)
        asks = step.readings.ask[readings]
        # A row's readings of one ask stand together, in the order of its tokens.
        borders = np.flatnonzero(np.diff(asks)) + 1
        for ask, part, flags in zip(
            asks[[0, *borders]],
            values.tensor_split(borders.tolist()),
            is_greedy.tensor_split(borders.tolist()),
            strict=True,
        ):
            yield _Found(ask=int(ask), values=part, is_greedy=bool(flags.all()))
