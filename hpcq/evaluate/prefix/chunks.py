"""Pieces: what is computed whole by one shard, cut from the full request list of a work, then dealt.

Knows requests' texts; must not know tokens, engines or files.

Floating-point results depend on what a request is computed together with. So a piece is a function of its task's
requests alone: no shard count, no interruption, no other task can change it, and whoever computes it gets the same
bits. Where some of its responses are known already, what the others need of it is computed in the very same way.

Requests that share a beginning stand side by side in the sorted list, which is cut where neighbours share least:

    examples Question 1 Paris        a piece      Cutting costs the beginning that both sides share, computed again:
    examples Question 1 Rome                      here the examples, but no question.
    ·································
    examples Question 2 Oslo         the next

Bytes of text stand for tokens here, so that a shard need tokenize nothing but its own pieces.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from hpcq.core.work import Shard
from hpcq.evaluate.prefix.radix_tree import common_length
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import RequestKey

# About four bytes are a token. A piece costs this share of what is left of its task: the first ones are large, because
# every cut costs, the last ones small, because they even out the shards.
_SHARE_OF_REST = 1 / 16
_LEAST_BYTES = 8_000
MOST_BYTES = 256_000
"""So much is tokenized and scheduled at once: some seconds of an 8B model on one H100."""
# What cutting may add to a task's cost; only the bound on a piece goes before it.
_RECOMPUTED = 0.03
# How far a piece may go beyond its size to end between documents rather than inside one.
_SEARCH = 0.25

# Reading is done many tokens at a time, writing one at a time: a generated token costs as much as reading several, of
# about four bytes each, and not every answer runs to its limit. Only the balance between shards depends on this.
_BYTES_PER_GENERATED_TOKEN = 16
_USUAL_GENERATED_TOKENS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Requests of one task, kind and generation arguments. cost: bytes to compute, where a shared one counts once."""

    requests: tuple[Request, ...]
    cost: int


def cut(
    requests: Iterable[Request], *, rows: int = 1, shares_prefixes: bool = True, most_bytes: int = MOST_BYTES
) -> list[Piece]:
    """All requests in pieces, task by task.

    rows: texts that are generated together, the longest prompts first. shares_prefixes: False where log-likelihoods are
    computed like that too. most_bytes: cost of a piece above which it is cut at any price; it may be a quarter larger,
    and the last document's requests.
    """
    ordered = sorted(requests, key=lambda request: (*_group(request), request.key))
    pieces: list[Piece] = []
    for (_, kind, _), group in groupby(ordered, key=_group):
        members = list(group)
        is_tree = shares_prefixes and kind == LOGLIKELIHOOD
        pieces += _cut_tree(members, most_bytes) if is_tree else _cut_rows(members, rows)
    return pieces


def share(pieces: Sequence[Piece], shard: Shard, answered: Collection[RequestKey]) -> list[Piece]:
    """The pieces of one shard: its part of those with a request that is not in `answered`, then of all others.

    The first are the work that there is, so they are dealt by themselves, and evenly. The others are dealt too because
    an answer may be lost afterwards: then, too, every request is somebody's. `answered` is the same for all shards.
    """
    is_open = [any(request.key not in answered for request in piece.requests) for piece in pieces]
    missing = [piece for piece, more in zip(pieces, is_open, strict=True) if more]
    settled = [piece for piece, more in zip(pieces, is_open, strict=True) if not more]
    return [*deal(missing, shard), *deal(settled, shard)]


def deal(pieces: Sequence[Piece], shard: Shard) -> list[Piece]:
    """The pieces of one shard, in the order of `pieces`: dearest first, each to the shard with the least to do."""
    loads = [(0, index) for index in range(shard.count)]
    mine = []
    for number in sorted(range(len(pieces)), key=lambda number: (-pieces[number].cost, number)):
        load, index = loads[0]
        heapq.heapreplace(loads, (load + pieces[number].cost, index))
        if index == shard.index:
            mine.append(number)
    return [pieces[number] for number in sorted(mine)]


def _group(request: Request) -> tuple[str, str, str]:
    return (request.key.task, request.kind, json.dumps(request.generation, sort_keys=True))


def _cut_rows(requests: Sequence[Request], rows: int) -> list[Piece]:
    longest_first = sorted(requests, key=lambda request: (-len(_text(request)), request.key))
    pieces = []
    for start in range(0, len(longest_first), rows):
        members = tuple(longest_first[start : start + rows])
        limit = members[0].generation.get("max_gen_toks", _USUAL_GENERATED_TOKENS)
        generated = limit if members[0].kind == GENERATE else 0
        longest = len(_text(members[0])) + generated * _BYTES_PER_GENERATED_TOKEN
        pieces.append(Piece(requests=members, cost=len(members) * (1 + longest)))
    return pieces


def _cut_tree(requests: Sequence[Request], most_bytes: int) -> list[Piece]:
    texts = {request.key: _text(request) for request in requests}
    ordered = sorted(requests, key=lambda request: (texts[request.key], request.key))
    sorted_texts = [texts[request.key] for request in ordered]
    # What each has in common with the one before it, and what it adds to that.
    common = [0, *(common_length(one, other) for one, other in pairwise(sorted_texts))]
    added = (1 + len(text) - known for text, known in zip(sorted_texts, common, strict=True))
    total = [0, *accumulate(added)]
    borders = [0, *_borders(common, total, most_bytes), len(ordered)]
    return [
        Piece(requests=tuple(ordered[begin:end]), cost=common[begin] + total[end] - total[begin])
        for begin, end in pairwise(borders)
    ]


def _borders(common: Sequence[int], total: Sequence[int], most_bytes: int) -> Iterator[int]:
    """Where pieces other than the first begin. total: bytes that all requests before each number add."""
    begin = recomputed = 0
    while True:
        size = (total[-1] - total[begin]) * _SHARE_OF_REST
        size = min(max(size, _LEAST_BYTES), most_bytes)
        best, furthest = None, math.inf
        for number in range(begin + 1, len(common)):
            cost = common[begin] + total[number] - total[begin]
            if cost > furthest:
                break
            is_cheap = recomputed + common[number] <= _RECOMPUTED * total[number]
            if cost < size or not (is_cheap or cost >= most_bytes):
                continue
            if best is None:
                best, furthest = number, cost * (1 + _SEARCH)
            elif common[number] < common[best]:
                best = number
        if best is None:
            return
        yield best
        recomputed += common[best]
        begin = best


def _text(request: Request) -> bytes:
    """What a model reads of it, as bytes."""
    texts = (argument for argument in request.arguments if isinstance(argument, str))
    return "".join(texts).encode(errors="surrogatepass")
