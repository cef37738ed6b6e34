"""Waves: which prefixes of a tree are computed side by side, depth first, within an engine's limits.

Knows the tree's lengths and the limits; must not know what the tokens are, nor what is read from them.

A wave is all that may be computed next: siblings, and cousins whose parents were computed together. It is cut into
batches; each is computed, then the wave of its children, and what it kept is dropped before the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcq.evaluate.prefix.radix_tree import Tree


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine can hold: constants of the work, not measured as it runs, lest two machines differ in bits.

    kv_tokens: tokens of KV that live at one time: kept prefixes, each once; and in a pass that uses or keeps any, the
    prefix and the new tokens of every row, padded. batch_tokens: new tokens of a pass, padded; a longer row is alone.
    batch_rows: rows of a pass. pass_tokens: how many tokens could be computed in the time that a pass costs by itself:
    a dozen on a CPU, some hundred on a large GPU; what is computed hardly depends on it (benchmarks/tokens.py).
    """

    kv_tokens: int = 65_536
    batch_tokens: int = 4_096
    batch_rows: int = 64
    pass_tokens: int = 32


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Span:
    """A row to be: positions `start` to `end` of `node`'s path, after the kept prefix `parent`.

    unread: the first position that no ancestor has read. is_shared: False where the budget is too small for what it
    shares with others, so that it begins at the very beginning.
    """

    node: int
    start: int
    end: int
    unread: int
    parent: int | None = None
    keeps: bool = False
    is_shared: bool = True

    @property
    def tokens(self) -> int:
        """New tokens."""
        return self.end - self.start

    @property
    def has_cache(self) -> bool:
        """Whether KV is read or left."""
        return self.keeps or self.parent is not None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Batch:
    """The rows of one pass, the longest first. drops: the nodes whose KV nobody needs after it."""

    spans: Sequence[Span]
    drops: list[int]

    @property
    def padded_tokens(self) -> int:
        """New tokens, with padding."""
        return len(self.spans) * self.spans[0].tokens


def batches(tree: Tree, limits: Limits) -> list[Batch]:
    """Everything that `tree` asks for, in the order of its computation."""
    rooms = _rooms(tree)
    live_tokens = 0
    done: list[Batch] = []
    waiting: list[Batch | list[Span]] = []

    def wait_for(wave: Sequence[Span]) -> None:
        waiting.extend(reversed(_cut(tree, wave, limits, rooms, live_tokens)))

    wait_for([_span(tree, root, None) for root in tree.roots])
    while waiting:
        following = waiting.pop()
        if isinstance(following, list):
            done[-1].drops.extend(span.node for span in following)
            live_tokens -= sum(span.tokens for span in following)
            continue
        done.append(following)
        kept = [span for span in following.spans if span.keeps]
        if kept:
            live_tokens += sum(span.tokens for span in kept)
            waiting.append(kept)
            wait_for([_span(tree, child, span.node) for span in kept for child in tree.nodes[span.node].children])
    return done


def _span(tree: Tree, number: int, parent: int | None) -> Span:
    node, start = tree.nodes[number], tree.starts[number]
    return Span(node=number, start=start, end=node.end, unread=start, parent=parent, keeps=bool(node.children))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Rooms:
    """KV tokens that the descendants of each kept node need, one row at a time.

    least: so that keeping it serves one of them. most: so that it serves all.
    """

    least: Sequence[int]
    most: Sequence[int]


def _rooms(tree: Tree) -> _Rooms:
    least, most = [0] * len(tree.nodes), [0] * len(tree.nodes)
    for number, node in enumerate(tree.nodes):
        needs = [(tree.starts[child], tree.nodes[child], least[child], most[child]) for child in node.children]
        if needs:
            least[number] = min(_room(start, child.end, low) for start, child, low, _ in needs)
            most[number] = max(_room(start, child.end, high) for start, child, _, high in needs)
    return _Rooms(least=least, most=most)


def _room(start: int, end: int, below: int) -> int:
    """What one row needs: itself and its prefix while it is computed; then, if it is kept, what comes below it."""
    return end - start + max(end, below) if below else end


def _cut(tree: Tree, wave: Sequence[Span], limits: Limits, rooms: _Rooms, live_tokens: int) -> list[Batch]:
    """The wave's batches; what the budget cannot hold comes last, leaf by leaf and from the very beginning."""
    shared: list[Span] = []
    unshared: list[Span] = []
    for span in wave:
        room = _room(span.start, span.end, rooms.least[span.node])
        if not span.has_cache or live_tokens + room <= limits.kv_tokens:
            shared.append(span)
        else:
            unshared += [
                Span(node=leaf, start=0, end=tree.nodes[leaf].end, unread=span.start, is_shared=False)
                for leaf in tree.leaves(span.node)
            ]
    return [*_grouped(shared, limits, rooms, live_tokens), *_grouped(unshared, limits, rooms, live_tokens)]


def _grouped(wave: Sequence[Span], limits: Limits, rooms: _Rooms, live_tokens: int) -> list[Batch]:
    """The grouping of fewest tokens, where a pass costs `pass_tokens` and every row is as long as its longest."""
    spans = sorted(wave, key=lambda span: (-span.tokens, -span.start, span.node))
    cheapest = [0] * (len(spans) + 1)
    ends = [0] * len(spans)
    for begin in range(len(spans) - 1, -1, -1):
        widest = _widest(spans, begin, limits, rooms, live_tokens)
        costs = [
            (limits.pass_tokens + (end - begin) * spans[begin].tokens + cheapest[end], -end)
            for end in range(begin + 1, widest + 1)
        ]
        cost, last = min(costs)
        cheapest[begin], ends[begin] = cost, -last
    found = []
    begin = 0
    while begin < len(spans):
        found.append(Batch(spans=spans[begin : ends[begin]], drops=[]))
        begin = ends[begin]
    return found


def _widest(spans: Sequence[Span], begin: int, limits: Limits, rooms: _Rooms, live_tokens: int) -> int:
    """The end of the largest batch that begins at `begin`: at least one row.

    A row that is shorter than the longest by more than a pass costs is never in it: it is cheaper by itself.
    """
    longest = spans[begin].tokens
    rows = max(1, min(limits.batch_rows, limits.batch_tokens // longest))
    kept = prefix = below = 0
    has_cache = False
    for end in range(begin, min(begin + rows, len(spans))):
        span = spans[end]
        has_cache |= span.has_cache
        prefix = max(prefix, span.start)
        if span.keeps:
            kept += span.tokens
            below = max(below, rooms.most[span.node])
        rows_room = (end - begin + 1) * (prefix + longest) if has_cache else 0
        is_cheaper_alone = longest - span.tokens > limits.pass_tokens
        if end > begin and (is_cheaper_alone or live_tokens + kept + max(rows_room, below) > limits.kv_tokens):
            return end
    return min(begin + rows, len(spans))
