"""Lanes: the rows of a pass laid behind one another, so that no prefix is held twice and little is padding.

Knows numbers of tokens and of kept prefixes alone; must not know tensors.

A lane is one row of the tensor that a model is given. What its rows share is there once; a mask tells who sees it:

    keys      examples  Question 1  Question 2 │ Paris is  Rome is  Oslo is
    Paris is     ■          ■                  │    ◣
    Rome is      ■          ■                  │              ◣
    Oslo is      ■                      ■      │                       ◣
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcq.evaluate.prefix.forward_pass import Pass

Chain = tuple[int, ...]
"""The numbers of kept prefixes from the very beginning down."""

# A query that meets a key it may not see costs as much as one that it may: so many of these cost what a token does.
# SmolLM2-135M in fp32 on a CPU: 2,300; larger models: more. And one forward pass costs about as much as so many tokens.
_MEETINGS_PER_TOKEN = 2_048
_TOKENS_PER_LANE = 32


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Lane:
    """`rows` of a pass, by number, in order. chain: every kept prefix that one of them sees, parents first."""

    rows: tuple[int, ...]
    chain: Chain


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Layout:
    """Where everything of a lane stands. keys and queries: the positions, in their texts, of keys and of new tokens.

    offsets: where each of the lane's rows begins among the new tokens. visible: which query sees which key; None where
    each sees all keys before it.
    """

    keys: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]
    offsets: Sequence[int]
    visible: npt.NDArray[np.bool_] | None


def lanes(step: Pass, chains: Mapping[int, Chain], lengths: Mapping[int, int]) -> list[Lane]:
    """All rows of `step`, each in one lane: joined where keeping them apart would cost more.

    chains, lengths: of every kept prefix the chain that ends with it, and its own tokens.
    """
    chain_of = [chains[row.parent] if row.parent is not None else () for row in step.rows]
    found: list[Lane] = []
    for number in sorted(range(len(step.rows)), key=lambda number: (chain_of[number], number)):
        alone = Lane(rows=(number,), chain=chain_of[number])
        if found:
            last = found[-1]
            more = tuple(prefix for prefix in alone.chain if prefix not in last.chain)
            joined = Lane(rows=(*last.rows, number), chain=last.chain + more)
            if _cost(step, joined, lengths) <= _cost(step, last, lengths) + _cost(step, alone, lengths):
                found[-1] = joined
                continue
        found.append(alone)
    return found


def _cost(step: Pass, lane: Lane, lengths: Mapping[int, int]) -> float:
    """In meetings of a query and a key, beyond what the tokens themselves cost."""
    queries = sum(len(step.rows[number].tokens) for number in lane.rows)
    keys = sum(lengths[prefix] for prefix in lane.chain)
    own = queries * (0.5 if _is_plain(lane) else 1.0)
    return _TOKENS_PER_LANE * _MEETINGS_PER_TOKEN + queries * (keys + own)


def _is_plain(lane: Lane) -> bool:
    """Whether a model needs no mask from us: a text from its very beginning."""
    return len(lane.rows) == 1 and not lane.chain


def layout(step: Pass, lane: Lane, chains: Mapping[int, Chain], spans: Mapping[int, tuple[int, int]]) -> Layout:
    """Where the lane's keys and queries stand. spans: of every kept prefix its first position, and the one after it."""
    rows = [step.rows[number] for number in lane.rows]
    queries = np.concatenate([np.arange(row.start, row.start + len(row.tokens)) for row in rows])
    kept = [np.arange(*spans[prefix]) for prefix in lane.chain]
    keys = np.concatenate([*kept, queries])
    ends = np.cumsum([len(row.tokens) for row in rows])
    begins = [0, *ends[:-1].tolist()]
    if _is_plain(lane):
        return Layout(keys=keys, queries=queries, offsets=begins, visible=None)
    places = _places(lane.chain, spans)
    first = len(keys) - len(queries)
    visible = np.zeros((len(queries), len(keys)), np.bool_)
    for row, begin, end in zip(rows, begins, ends.tolist(), strict=True):
        for prefix in chains[row.parent] if row.parent is not None else ():
            visible[begin:end, slice(*places[prefix])] = True
        visible[begin:end, first + begin : first + end] = np.tri(end - begin, dtype=np.bool_)
    return Layout(keys=keys, queries=queries, offsets=begins, visible=visible)


def _places(chain: Chain, spans: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Where each kept prefix stands among the keys."""
    found = {}
    begin = 0
    for prefix in chain:
        start, end = spans[prefix]
        found[prefix] = (begin, begin + end - start)
        begin += end - start
    return found
