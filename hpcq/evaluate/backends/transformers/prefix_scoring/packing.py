"""Sequence packing: concatenates rows of a pass, so that no prefix is stored twice and there is little padding.

A packed row is one row of the model's input tensor. A prefix that its rows share occurs once; a mask makes it visible
to the right rows:

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

from hpcq.evaluate.prefix.forward_pass import ForwardPass

Chain = tuple[int, ...]
"""Cache ids of the parts of a prefix, from position 0 on."""

# A masked pair of query and key costs as much as a visible one. One token costs as much as this number of pairs:
# 2,300 for SmolLM2-135M in fp32 on a CPU, more for larger models.
_ATTENTION_PAIRS_PER_TOKEN = 2_048
# One forward pass costs about as much as this number of tokens.
_TOKENS_PER_PACKED_ROW = 32


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PackedRow:
    """Rows of a pass that are concatenated.

    Attributes:
        rows: Numbers of the rows in the pass, in order.
        chain: Cache ids of all prefixes that one of the rows continues, parents first.
    """

    rows: tuple[int, ...]
    chain: Chain


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RowLayout:
    """Layout of one packed row.

    Attributes:
        keys: Position of each key in its text, [keys]; the new tokens are the last ones.
        queries: Position of each new token in its text, [queries].
        offsets: Index of each row's first token among the new tokens.
        visible: Which query sees which key, [queries, keys]; None if each sees all keys before it.
    """

    keys: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]
    offsets: Sequence[int]
    visible: npt.NDArray[np.bool_] | None


def pack_rows(step: ForwardPass, chains: Mapping[int, Chain], lengths: Mapping[int, int]) -> list[PackedRow]:
    """Pack all rows of `step`; rows are joined if separate packed rows would cost more.

    Args:
        step: The pass.
        chains: Chain of every cached prefix, with itself at the end, by cache id.
        lengths: Number of own tokens of every cached prefix, by cache id.
    """
    chain_of = [chains[row.parent_id] if row.parent_id is not None else () for row in step.rows]
    found: list[PackedRow] = []
    for number in sorted(range(len(step.rows)), key=lambda number: (chain_of[number], number)):
        alone = PackedRow(rows=(number,), chain=chain_of[number])
        if found:
            last = found[-1]
            more = tuple(prefix for prefix in alone.chain if prefix not in last.chain)
            joined = PackedRow(rows=(*last.rows, number), chain=last.chain + more)
            if _cost(step, joined, lengths) <= _cost(step, last, lengths) + _cost(step, alone, lengths):
                found[-1] = joined
                continue
        found.append(alone)
    return found


def _cost(step: ForwardPass, packed: PackedRow, lengths: Mapping[int, int]) -> float:
    """Return the cost in pairs of query and key, without the cost of the tokens themselves."""
    queries = sum(len(step.rows[number].tokens) for number in packed.rows)
    keys = sum(lengths[prefix] for prefix in packed.chain)
    own = queries * (0.5 if _needs_no_mask(packed) else 1.0)
    return _TOKENS_PER_PACKED_ROW * _ATTENTION_PAIRS_PER_TOKEN + queries * (keys + own)


def _needs_no_mask(packed: PackedRow) -> bool:
    """Return whether the model's own causal mask is enough: one row, from position 0."""
    return len(packed.rows) == 1 and not packed.chain


def row_layout(
    step: ForwardPass, packed: PackedRow, chains: Mapping[int, Chain], spans: Mapping[int, tuple[int, int]]
) -> RowLayout:
    """Return the layout of a packed row.

    Args:
        step: The pass.
        packed: The packed row.
        chains: Chain of every cached prefix, by cache id.
        spans: First position of every cached prefix's own tokens, and the one after the last, by cache id.
    """
    rows = [step.rows[number] for number in packed.rows]
    queries = np.concatenate([np.arange(row.start, row.start + len(row.tokens)) for row in rows])
    cached = [np.arange(*spans[cache_id]) for cache_id in packed.chain]
    keys = np.concatenate([*cached, queries])
    ends = np.cumsum([len(row.tokens) for row in rows])
    begins = [0, *ends[:-1].tolist()]
    if _needs_no_mask(packed):
        return RowLayout(keys=keys, queries=queries, offsets=begins, visible=None)
    key_ranges = _key_ranges(packed.chain, spans)
    first = len(keys) - len(queries)
    visible = np.zeros((len(queries), len(keys)), np.bool_)
    for row, begin, end in zip(rows, begins, ends.tolist(), strict=True):
        for cache_id in chains[row.parent_id] if row.parent_id is not None else ():
            visible[begin:end, slice(*key_ranges[cache_id])] = True
        visible[begin:end, first + begin : first + end] = np.tri(end - begin, dtype=np.bool_)
    return RowLayout(keys=keys, queries=queries, offsets=begins, visible=visible)


def _key_ranges(chain: Chain, spans: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return the range of each cached prefix among the keys, by cache id."""
    found = {}
    begin = 0
    for cache_id in chain:
        start, end = spans[cache_id]
        found[cache_id] = (begin, begin + end - start)
        begin += end - start
    return found
