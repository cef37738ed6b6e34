"""Chunks of requests with common prefixes that are never divided between two shards.

Floating-point results depend on what a request is computed together with. Therefore a chunk depends only on its task's
requests: not on the number of shards, on interruptions or on other tasks. Every process that computes a chunk gets the
same bits. If some of its responses exist already, the others are computed in exactly the same way.

Requests with a common prefix are adjacent in the sorted list. It is cut where neighbours share least:

    examples Question 1 Paris        one chunk    Cutting costs the prefix that both sides share, which is computed
    examples Question 1 Rome                      again: here the examples, but no question.
    ·································
    examples Question 2 Oslo         the next

Lengths are measured in bytes of text, not in tokens, so that a shard tokenizes only its own chunks.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Shard
from hpcq.evaluate.prefix.radix_tree import common_prefix_length
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, TOP_LOGPROBS, Request
from hpcq.store import RequestKey

# A token is about four bytes. A chunk takes this fraction of the remaining cost of its task: the first chunks are
# large, because every cut costs something; the last ones are small, because they balance the shards.
_CHUNK_FRACTION = 1 / 16
_MIN_CHUNK_BYTES = 8_000
MAX_CHUNK_BYTES = 256_000
"""Limit of what is tokenized and planned at once: a few seconds of an 8B model on one H100."""
# Fraction that cutting may add to the cost of a task, unless a chunk would exceed its limit.
_MAX_RECOMPUTED = 0.03
# Fraction by which a chunk may exceed its size in order to end between documents and not inside one.
_SEARCH_WINDOW = 0.25

# A prompt is read many tokens at a time, but text is generated one token at a time: a generated token costs as much as
# reading several of about four bytes each, and not every answer reaches its limit. Only the balance of shards depends
# on this.
_BYTES_PER_GENERATED_TOKEN = 16
_DEFAULT_GENERATED_TOKENS = 256
_OTHER_ROWS = 2
"""Windows per chunk of a repeated fidelity panel, if batches have one row otherwise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Requests of one task, with the same kind and the same generation arguments.

    Attributes:
        requests: The requests.
        cost: Bytes to compute; a shared prefix counts once.
    """

    requests: tuple[Request, ...]
    cost: int


def partition(
    requests: Iterable[Request], *, rows: int = 1, shares_prefixes: bool = True, max_bytes: int = MAX_CHUNK_BYTES
) -> list[Chunk]:
    """Partition all requests into chunks, task by task.

    Args:
        requests: The requests, in any order.
        rows: Requests per chunk of generation, the longest prompts first, and windows per chunk of a fidelity panel.
        shares_prefixes: Whether log-likelihoods are computed from shared prefixes. If not, they are chunked like
            generation.
        max_bytes: Cost above which a chunk is always cut. It can be exceeded by a quarter and by the requests of
            the last document.
    """
    ordered = sorted(requests, key=lambda request: (*_group(request), request.key))
    chunks: list[Chunk] = []
    for (_, kind, _), group in groupby(ordered, key=_group):
        members = list(group)
        is_tree = shares_prefixes and kind == LOGLIKELIHOOD
        if kind == TOP_LOGPROBS and members[0].key.repeat:
            # The noise floor of the fidelity panel: the same windows in batches of another size, in another order.
            chunks += reversed(_partition_rows(members, 1 if rows > 1 else _OTHER_ROWS))
        else:
            chunks += _partition_tree(members, max_bytes) if is_tree else _partition_rows(members, rows)
    return chunks


def chunks_of_shard(chunks: Sequence[Chunk], shard: Shard, answered: Collection[RequestKey]) -> list[Chunk]:
    """Return the chunks of one shard: first those with missing responses, then the others.

    The open chunks are the actual work, so they are balanced separately. The complete ones are assigned too, because a
    response can be lost later, and then its request must still belong to a shard.

    Args:
        chunks: All chunks of the evaluation.
        shard: The shard.
        answered: Requests with a response. Must be the same for all shards.
    """
    is_open = [any(request.key not in answered for request in chunk.requests) for chunk in chunks]
    missing = [chunk for chunk, flag in zip(chunks, is_open, strict=True) if flag]
    complete = [chunk for chunk, flag in zip(chunks, is_open, strict=True) if not flag]
    return [*balanced_part(missing, shard), *balanced_part(complete, shard)]


def balanced_part(chunks: Sequence[Chunk], shard: Shard) -> list[Chunk]:
    """Return the part of `chunks` that one shard computes, in their order.

    The most expensive chunk is assigned first; each goes to the shard with the lowest load.
    """
    loads = [(0, index) for index in range(shard.count)]
    mine = []
    for number in sorted(range(len(chunks)), key=lambda number: (-chunks[number].cost, number)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + chunks[number].cost, index))
        if index == shard.index:
            mine.append(number)
    return [chunks[number] for number in sorted(mine)]


def _group(request: Request) -> tuple[str, str, str]:
    settings = json.dumps(request.generation_kwargs, sort_keys=True)
    return (request.key.task, request.kind, str(request.key.repeat) if request.kind == TOP_LOGPROBS else settings)


def _partition_rows(requests: Sequence[Request], rows: int) -> list[Chunk]:
    longest_first = sorted(requests, key=lambda request: (-len(_text(request)), request.key))
    chunks = []
    for start in range(0, len(longest_first), rows):
        members = tuple(longest_first[start : start + rows])
        limit = members[0].generation_kwargs.get("max_gen_toks", _DEFAULT_GENERATED_TOKENS)
        generated = limit if members[0].kind == GENERATE else 0
        longest = len(_text(members[0])) + generated * _BYTES_PER_GENERATED_TOKEN
        chunks.append(Chunk(requests=members, cost=len(members) * (1 + longest)))
    return chunks


def _partition_tree(requests: Sequence[Request], max_bytes: int) -> list[Chunk]:
    texts = {request.key: _text(request) for request in requests}
    ordered = sorted(requests, key=lambda request: (texts[request.key], request.key))
    sorted_texts = [texts[request.key] for request in ordered]
    # Bytes that each text has in common with the one before it, and that it adds.
    common = [0, *(common_prefix_length(one, other) for one, other in pairwise(sorted_texts))]
    added = (1 + len(text) - shared for text, shared in zip(sorted_texts, common, strict=True))
    total = [0, *accumulate(added)]
    boundaries = [0, *_boundaries(common, total, max_bytes), len(ordered)]
    return [
        Chunk(requests=tuple(ordered[begin:end]), cost=common[begin] + total[end] - total[begin])
        for begin, end in pairwise(boundaries)
    ]


def _boundaries(common: Sequence[int], total: Sequence[int], max_bytes: int) -> Iterator[int]:
    """Yield the first request of every chunk but the first.

    Args:
        common: Bytes that each request has in common with the one before it.
        total: Bytes that all requests before each request add; one entry more than `common`.
        max_bytes: As for `partition`.
    """
    begin = recomputed = 0
    while True:
        size = (total[-1] - total[begin]) * _CHUNK_FRACTION
        size = min(max(size, _MIN_CHUNK_BYTES), max_bytes)
        best, furthest = None, math.inf
        for number in range(begin + 1, len(common)):
            cost = common[begin] + total[number] - total[begin]
            if cost > furthest:
                break
            is_cheap = recomputed + common[number] <= _MAX_RECOMPUTED * total[number]
            if cost < size or not (is_cheap or cost >= max_bytes):
                continue
            if best is None:
                best, furthest = number, cost * (1 + _SEARCH_WINDOW)
            elif common[number] < common[best]:
                best = number
        if best is None:
            return
        yield best
        recomputed += common[best]
        begin = best


def _text(request: Request) -> bytes:
    """Return the text that a model reads, as bytes."""
    texts = (argument for argument in request.arguments if isinstance(argument, str))
    return "".join(texts).encode(errors="surrogatepass")
