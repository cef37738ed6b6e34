"""Batches: cut from the full request list of a work, then dealt to shards whole.

Knows requests; must not know back ends or files.

Floating-point results depend on a request's neighbours in its batch (padding, the shape of a matrix product). So its
neighbours are a function of its task and the batch size alone: no shard count, no resumption, no other task of the
work can change them, and the responses are the same bits each time.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey
from hpcq.units import Shard

Batch = tuple[Request, ...]

# Reading is done many tokens at a time, writing one at a time: a generated token costs as much as reading several, of
# about four characters each, and not every answer runs to its limit. Only the balance between shards depends on this.
_CHARACTERS_PER_GENERATED_TOKEN = 16
_USUAL_GENERATED_TOKENS = 256


def cut(requests: Iterable[Request], batch_size: int) -> list[Batch]:
    """All requests in batches of one task, kind and generation arguments each; the longest first within a task."""
    ordered = sorted(requests, key=lambda request: (*_group(request), -request.length, request.key))
    batches: list[Batch] = []
    for _, group in groupby(ordered, key=_group):
        members = tuple(group)
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches


def share(batches: Sequence[Batch], shard: Shard, answered: Collection[RequestKey]) -> list[Batch]:
    """The batches of one shard: its part of those with a request that is not in `answered`, then of all others.

    The first are the work that there is, so they are dealt by themselves, and evenly. The others are dealt too because
    an answer may be lost afterwards: then, too, every request is somebody's. `answered` is the same for all shards.
    """
    is_open = [any(request.key not in answered for request in batch) for batch in batches]
    missing = [batch for batch, more in zip(batches, is_open, strict=True) if more]
    settled = [batch for batch, more in zip(batches, is_open, strict=True) if not more]
    return [*deal(missing, shard), *deal(settled, shard)]


def deal(batches: Sequence[Batch], shard: Shard) -> list[Batch]:
    """The batches of one shard, in the order of `batches`: dearest first, each to the shard with the least to do."""
    costs = [_cost(batch) for batch in batches]
    loads = [(0, index) for index in range(shard.count)]
    mine = []
    for number in sorted(range(len(batches)), key=lambda number: (-costs[number], number)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + costs[number], index))
        if index == shard.index:
            mine.append(number)
    return [batches[number] for number in sorted(mine)]


def _group(request: Request) -> tuple[str, str, str]:
    return (request.key.task, request.kind, json.dumps(request.generation, sort_keys=True))


def _cost(batch: Batch) -> int:
    """Characters to compute, padding included, with what is generated in the same coin."""
    limit = batch[0].generation.get("max_gen_toks", _USUAL_GENERATED_TOKENS)
    generated = limit if batch[0].kind == GENERATE else 0
    longest = max(request.length for request in batch)
    return len(batch) * (1 + longest + generated * _CHARACTERS_PER_GENERATED_TOKEN)
