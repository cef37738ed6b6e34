"""Planner: from token requests to the cheapest sequence of forward passes within an engine's budget.

    examples ─┬─ Question 1 ─┬─ Paris is        pass 1: examples                   cached: examples
              │              └─ Rome is         pass 2: Question 1, Question 2     cached: these and examples
              └─ Question 2                     pass 3: Paris is, Rome is          evicted: all

The rows of a pass are padded to its longest row, and every pass has a fixed overhead; both are counted in tokens. The
plan depends only on the set of requests and the budget, so every process with the same two computes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcq.evaluate.prefix.batching import Batch, Budget, RowSpan, plan_batches
from hpcq.evaluate.prefix.forward_pass import ForwardPass, LogitGather, Row
from hpcq.evaluate.prefix.radix_tree import RadixTree, TokenRequest, build_tree, pruned

# Tokens that sharing a prefix must save to justify its rows and passes. The best value depends on what else the same
# passes compute, so each is tried. The last one shares nothing except what is read on the path to one leaf.
_MIN_SAVINGS = (1, 32, 256, math.inf)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PassPlan:
    """A sequence of forward passes.

    Attributes:
        passes: The passes, in order.
        unshared_rows: Rows that start at position 0 because the budget is too small for their shared prefix.
    """

    passes: tuple[ForwardPass, ...]
    unshared_rows: int

    @property
    def num_tokens(self) -> int:
        """Computed tokens, without padding."""
        return sum(step.num_tokens for step in self.passes)

    @property
    def num_padded_tokens(self) -> int:
        """Computed tokens of an engine that pads."""
        return sum(step.num_padded_tokens for step in self.passes)


def plan_passes(requests: Sequence[TokenRequest], budget: Budget) -> PassPlan:
    """Return the cheapest plan within `budget`. Requests are numbered by their index in `requests`."""
    whole = build_tree(requests)
    trees = [pruned(whole, min_saving) for min_saving in _MIN_SAVINGS]
    tree, batches = min(
        ((tree, plan_batches(tree, budget)) for tree in trees),
        key=lambda planned: sum(budget.pass_overhead_tokens + batch.num_padded_tokens for batch in planned[1]),
    )
    readers = _requests_by_node(tree)
    return PassPlan(
        passes=tuple(_build_pass(tree, batch, readers) for batch in batches),
        unshared_rows=sum(not span.is_shared for batch in batches for span in batch.spans),
    )


def restrict(plan: PassPlan, requests: Collection[int]) -> PassPlan:
    """Return the passes of `plan` that some of its requests need.

    The passes themselves are unchanged, so that the results are the same bits as with the whole plan.
    """
    wanted = frozenset(requests)
    needed_ids: set[int] = set()
    needed = []
    for step in reversed(plan.passes):
        if wanted.isdisjoint(step.gather.request.tolist()) and needed_ids.isdisjoint(row.cache_id for row in step.rows):
            continue
        needed.append(step)
        needed_ids.update(row.parent_id for row in step.rows if row.parent_id is not None)
    return replace(plan, passes=_with_evictions(plan, needed[::-1], wanted))


def _with_evictions(plan: PassPlan, needed: Sequence[ForwardPass], wanted: frozenset[int]) -> tuple[ForwardPass, ...]:
    """Return the `needed` passes; each evicts what `plan` evicts before the next of them."""
    remaining = {id(step) for step in needed}
    live: set[int] = set()
    found: list[ForwardPass] = []
    for step in plan.passes:
        evicted = set(step.evict)
        if id(step) in remaining:
            live.update(row.cache_id for row in step.rows if row.cache_id is not None)
            finished = tuple(request for request in step.finished if request in wanted)
            found.append(replace(step, finished=finished, evict=()))
        elif not found:
            continue
        gone = live & evicted
        live -= gone
        found[-1] = replace(found[-1], evict=(*found[-1].evict, *sorted(gone)))
    return tuple(found)


def _requests_by_node(tree: RadixTree) -> list[list[int]]:
    """Return, for each node, the requests of its leaves that need logits on the path to it.

    Only these read log-probabilities from the node's row, so that each one is read once.
    """
    found = [list(node.requests) for node in tree.nodes]
    for number, node in enumerate(tree.nodes):
        for child in node.children:
            found[number] += [request for request in found[child] if tree.requests[request].first_logit < node.end]
    return found


def _build_pass(tree: RadixTree, batch: Batch, readers: Sequence[Sequence[int]]) -> ForwardPass:
    """Return the pass that computes `batch`. `readers` are the requests by node."""
    gather, finished = _gather(tree, batch, readers)
    rows = tuple(_row(tree, span) for span in batch.spans)
    return ForwardPass(rows=rows, gather=gather, finished=finished, evict=tuple(sorted(batch.evict)))


def _row(tree: RadixTree, span: RowSpan) -> Row:
    tokens = tree.requests[tree.nodes[span.node].request].tokens[span.start : span.end]
    return Row(tokens=tokens, start=span.start, parent_id=span.parent, cache_id=span.node if span.is_cached else None)


def _gather(tree: RadixTree, batch: Batch, readers: Sequence[Sequence[int]]) -> tuple[LogitGather, tuple[int, ...]]:
    """Return the log-probabilities to read from `batch`, and the requests that are finished with them."""
    places: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    numbers: list[int] = []
    counts: list[int] = []
    finished: list[int] = []
    width = batch.spans[0].num_tokens
    for row, span in enumerate(batch.spans):
        for number in readers[span.node]:
            request = tree.requests[number]
            begin, end = max(request.first_logit, span.first_unread), min(request.input_length, span.end)
            if begin >= end:
                continue
            places.append(np.arange(begin, end) + (row * width - span.start))
            targets.append(request.tokens[begin + 1 : end + 1])
            numbers.append(number)
            counts.append(end - begin)
            if end == request.input_length:
                finished.append(number)
    nothing = np.empty(0, np.int64)
    unique, index = np.unique(np.concatenate([nothing, *places]), return_inverse=True)
    return (
        LogitGather(
            row=unique // width,
            column=unique % width,
            index=index.astype(np.int64),
            target=np.concatenate([nothing, *targets]),
            request=np.repeat(np.array(numbers, np.int64), np.array(counts, np.int64)),
        ),
        tuple(finished),
    )
