"""The tree of token prefixes that requests share, built by sorting.

Knows tokens alone; must not know texts, budgets, tasks or engines.

What a task sends, and the tree of it: every edge is computed once, whatever the number of requests below it.

    examples Question 1 Paris is      examples ─┬─ Question 1 ─┬─ Paris is
    examples Question 1 Rome is                 │              └─ Rome is
    examples Question 2 A                       └─ Question 2        ← its last logits answer A and B
    examples Question 2 B

A model reads all but the last token of a request; the logits at each position speak of the next token. So requests that
differ in their last token alone (choices of one token) read the same, and a request that reads the beginning of what
another one reads needs no computation of its own: both are *read* on the path of one leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

_TOKEN_BYTES = 4


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Ask:
    """What one request asks: the log-likelihood of the last `continuation` of its `tokens`, given those before.

    Both are at least one: 0 < continuation < len(tokens).
    """

    tokens: Tokens
    continuation: int

    @property
    def read(self) -> int:
        """Tokens that a model reads: all but the last."""
        return len(self.tokens) - 1

    @property
    def first(self) -> int:
        """The first position whose logits are needed, that of the last token of the context."""
        return self.read - self.continuation


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Node:
    """A prefix of `end` tokens: the first ones of the ask number `ask`. It adds those after its parent's end.

    children: longer prefixes; empty at a leaf. asks: at a leaf, all that are read on the path to it.
    """

    ask: int
    end: int
    children: tuple[int, ...] = ()
    asks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Tree:
    """Nodes stand after all of their children, so a loop over `nodes` goes up and a reversed one down.

    roots: the prefixes that share nothing with each other. starts: where each node's own tokens begin.
    """

    asks: Sequence[Ask]
    nodes: Sequence[Node]
    roots: tuple[int, ...]
    starts: Sequence[int]

    def tokens(self, node: int) -> Tokens:
        """The tokens that a node adds to its parent's: a view of a request's own array."""
        found = self.nodes[node]
        return self.asks[found.ask].tokens[self.starts[node] : found.end]

    def leaves(self, node: int) -> list[int]:
        """All leaves below a node, in order; the node itself if it is one."""
        found, waiting = [], [node]
        while waiting:
            number = waiting.pop()
            children = self.nodes[number].children
            waiting.extend(reversed(children))
            if not children:
                found.append(number)
        return found


@dataclass(kw_only=True, eq=False, slots=True)
class _Open:
    """A prefix on the path to the leaf that was added last: more children may come."""

    end: int
    children: list[int] = field(default_factory=list)


def common_length(one: bytes, other: bytes) -> int:
    """Bytes that both have in common at their beginning."""
    length = min(len(one), len(other))
    differs = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def build(asks: Sequence[Ask]) -> Tree:
    """The tree of `asks`: it depends on the set of them, and on their order in nothing but the numbers it holds.

    In sorted order whatever shares a prefix stands together, and a sequence stands right before those it is the
    beginning of. The order of bytes does as well as that of numbers, and comparing them is as fast as memory is.
    """
    keys = [ask.tokens[:-1].tobytes() for ask in asks]
    order = sorted(range(len(asks)), key=lambda number: (asks[number].tokens[-1], asks[number].first))
    order.sort(key=keys.__getitem__)
    nodes: list[Node] = []
    path = [_Open(end=0)]
    carried: list[int] = []
    for number, following in zip_longest(order, order[1:]):
        carried.append(number)
        key = keys[number]
        common = common_length(key, keys[following]) if following is not None else 0
        if following is not None and common == len(key):
            continue  # all that it reads, the next one reads
        shared = common // _TOKEN_BYTES
        leaf = Node(ask=number, end=len(key) // _TOKEN_BYTES, asks=tuple(carried))
        carried = []
        _close(nodes, path, leaf, shared)
    return _tree(asks, nodes, tuple(path[0].children))


def _close(nodes: list[Node], path: list[_Open], leaf: Node, shared: int) -> None:
    """Add a leaf, and close what the next leaf, which shares its first `shared` tokens, does not go through."""
    if shared > path[-1].end:
        path.append(_Open(end=shared))
    nodes.append(leaf)
    path[-1].children.append(len(nodes) - 1)
    while path[-1].end > shared:
        closed = path.pop()
        if shared > path[-1].end:
            path.append(_Open(end=shared))
        nodes.append(Node(ask=leaf.ask, end=closed.end, children=tuple(closed.children)))
        path[-1].children.append(len(nodes) - 1)


def folded(tree: Tree, worth: float) -> Tree:
    """`tree` without the prefixes whose sharing saves fewer than `worth` tokens: their children compute them again.

    A prefix of n tokens with k children saves n · (k - 1). Children are judged before their parent. What is left out
    keeps its place in `nodes`, empty, and nothing names it.
    """
    nodes: list[Node] = []
    instead: list[tuple[int, ...]] = []
    for number, node in enumerate(tree.nodes):
        children = tuple(standing for child in node.children for standing in instead[child])
        saved = (node.end - tree.starts[number]) * (len(children) - 1)
        stays = not node.children or saved >= worth
        nodes.append(Node(ask=node.ask, end=node.end, children=children if stays else (), asks=node.asks))
        instead.append((number,) if stays else children)
    roots = tuple(standing for root in tree.roots for standing in instead[root])
    return _tree(tree.asks, nodes, roots)


def _tree(asks: Sequence[Ask], nodes: Sequence[Node], roots: tuple[int, ...]) -> Tree:
    starts = [0] * len(nodes)
    for node in reversed(nodes):
        for child in node.children:
            starts[child] = node.end
    return Tree(asks=asks, nodes=nodes, roots=roots, starts=starts)
