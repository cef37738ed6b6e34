"""Batches of tree nodes that are computed in one forward pass, depth first, within an engine's budget.

Uses the lengths in the tree only, not the tokens.

A *wave* is everything that can be computed next: siblings, and cousins whose parents were computed together. A wave is
split into batches. Each batch is computed, then the wave of its children; then the KV of the batch is evicted, before
the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcq.evaluate.prefix.radix_tree import RadixTree

PREFIX_CACHE_SHARE = 1 / 16
"""Share of the GPUs' memory for KV that exists at one time; with offloading, of the first GPU's."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of an engine: constants, never measured at run time, because results must be the same on all machines.

    Attributes:
        max_kv_tokens: KV tokens that exist at one time: cached prefixes, each counted once; and, in a pass that reads
            or writes the cache, prefix and new tokens of every row, padded.
        max_batch_tokens: New tokens of one pass, padded. A longer row has a pass of its own.
        max_batch_rows: Rows of one pass.
        pass_overhead_tokens: Fixed cost of a pass, as the number of tokens that could be computed in the same time:
            about 12 on a CPU, some hundred on a large GPU. The plan hardly depends on it (benchmarks/tokens.py).
    """

    max_kv_tokens: int = 65_536
    max_batch_tokens: int = 4_096
    max_batch_rows: int = 64
    pass_overhead_tokens: int = 32


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RowSpan:
    """A row to compute: positions `start` to `end` on the path to `node`.

    Attributes:
        node: Number of the node.
        start: First position that is computed.
        end: Position after the last one.
        first_unread: First position whose logits no ancestor has read.
        parent: Node whose cached prefix the row continues; None for a row from position 0.
        is_cached: Whether the KV of the row is cached for the node's children.
        is_shared: False if the budget is too small for the prefix that the row shares, so that it starts at 0.
    """

    node: int
    start: int
    end: int
    first_unread: int
    parent: int | None = None
    is_cached: bool = False
    is_shared: bool = True

    @property
    def num_tokens(self) -> int:
        """New tokens."""
        return self.end - self.start

    @property
    def uses_cache(self) -> bool:
        """Whether the row reads or writes the KV cache."""
        return self.is_cached or self.parent is not None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Batch:
    """The rows of one pass.

    Attributes:
        spans: The rows, the longest first.
        evict: Nodes whose KV is not needed after this pass.
    """

    spans: Sequence[RowSpan]
    evict: list[int]

    @property
    def num_padded_tokens(self) -> int:
        """New tokens, with padding."""
        return len(self.spans) * self.spans[0].num_tokens


def plan_batches(tree: RadixTree, budget: Budget) -> list[Batch]:
    """Return the batches that compute all of `tree`, in order."""
    need = _kv_needs(tree)
    live_tokens = 0
    done: list[Batch] = []
    # A list of rows on the stack means: evict them, their children are done.
    stack: list[Batch | list[RowSpan]] = []

    def push_wave(wave: Sequence[RowSpan]) -> None:
        stack.extend(reversed(_split_wave(tree, wave, budget, need, live_tokens)))

    push_wave([_span(tree, root, None) for root in tree.roots])
    while stack:
        entry = stack.pop()
        if isinstance(entry, list):
            done[-1].evict.extend(span.node for span in entry)
            live_tokens -= sum(span.num_tokens for span in entry)
            continue
        done.append(entry)
        cached = [span for span in entry.spans if span.is_cached]
        if cached:
            live_tokens += sum(span.num_tokens for span in cached)
            stack.append(cached)
            push_wave([_span(tree, child, span.node) for span in cached for child in tree.nodes[span.node].children])
    return done


def _span(tree: RadixTree, number: int, parent: int | None) -> RowSpan:
    node, start = tree.nodes[number], tree.starts[number]
    return RowSpan(
        node=number, start=start, end=node.end, first_unread=start, parent=parent, is_cached=bool(node.children)
    )


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _KvNeed:
    """KV tokens that the descendants of each cached node need, computed one row at a time.

    Attributes:
        minimum: Enough for at least one descendant; with less, caching the node is useless.
        maximum: Enough for every descendant.
    """

    minimum: Sequence[int]
    maximum: Sequence[int]


def _kv_needs(tree: RadixTree) -> _KvNeed:
    minimum, maximum = [0] * len(tree.nodes), [0] * len(tree.nodes)
    for number, node in enumerate(tree.nodes):
        needs = [(tree.starts[child], tree.nodes[child], minimum[child], maximum[child]) for child in node.children]
        if needs:
            minimum[number] = min(_row_kv_need(start, child.end, low) for start, child, low, _ in needs)
            maximum[number] = max(_row_kv_need(start, child.end, high) for start, child, _, high in needs)
    return _KvNeed(minimum=minimum, maximum=maximum)


def _row_kv_need(start: int, end: int, below: int) -> int:
    """Return the KV tokens that one row needs.

    While it is computed: the row and its prefix. Afterwards, if it is cached: the row and the need `below` it.
    """
    return end - start + max(end, below) if below else end


def _split_wave(
    tree: RadixTree, wave: Sequence[RowSpan], budget: Budget, need: _KvNeed, live_tokens: int
) -> list[Batch]:
    """Split a wave into batches. Rows that exceed the budget come last, leaf by leaf, each from position 0."""
    shared: list[RowSpan] = []
    unshared: list[RowSpan] = []
    for span in wave:
        row_need = _row_kv_need(span.start, span.end, need.minimum[span.node])
        if not span.uses_cache or live_tokens + row_need <= budget.max_kv_tokens:
            shared.append(span)
        else:
            unshared += [
                RowSpan(node=leaf, start=0, end=tree.nodes[leaf].end, first_unread=span.start, is_shared=False)
                for leaf in tree.leaves(span.node)
            ]
    return [*_group_rows(shared, budget, need, live_tokens), *_group_rows(unshared, budget, need, live_tokens)]


def _group_rows(wave: Sequence[RowSpan], budget: Budget, need: _KvNeed, live_tokens: int) -> list[Batch]:
    """Group rows into the batches with the lowest total cost.

    The cost of a batch is `pass_overhead_tokens` plus its rows, each padded to the longest.
    """
    spans = sorted(wave, key=lambda span: (-span.num_tokens, -span.start, span.node))
    cheapest = [0] * (len(spans) + 1)
    ends = [0] * len(spans)
    for begin in range(len(spans) - 1, -1, -1):
        max_end = _max_batch_end(spans, begin, budget, need, live_tokens)
        costs = [
            (budget.pass_overhead_tokens + (end - begin) * spans[begin].num_tokens + cheapest[end], -end)
            for end in range(begin + 1, max_end + 1)
        ]
        cost, last = min(costs)
        cheapest[begin], ends[begin] = cost, -last
    found = []
    begin = 0
    while begin < len(spans):
        found.append(Batch(spans=spans[begin : ends[begin]], evict=[]))
        begin = ends[begin]
    return found


def _max_batch_end(spans: Sequence[RowSpan], begin: int, budget: Budget, need: _KvNeed, live_tokens: int) -> int:
    """Return the end of the largest batch that starts at `begin`; it has at least one row.

    A row that is shorter than the longest by more than the overhead of a pass is excluded: a pass of its own is
    cheaper.
    """
    longest = spans[begin].num_tokens
    rows = max(1, min(budget.max_batch_rows, budget.max_batch_tokens // longest))
    cached = prefix = below = 0
    uses_cache = False
    for end in range(begin, min(begin + rows, len(spans))):
        span = spans[end]
        uses_cache |= span.uses_cache
        prefix = max(prefix, span.start)
        if span.is_cached:
            cached += span.num_tokens
            below = max(below, need.maximum[span.node])
        rows_need = (end - begin + 1) * (prefix + longest) if uses_cache else 0
        is_cheaper_alone = longest - span.num_tokens > budget.pass_overhead_tokens
        if end > begin and (is_cheaper_alone or live_tokens + cached + max(rows_need, below) > budget.max_kv_tokens):
            return end
    return min(begin + rows, len(spans))
