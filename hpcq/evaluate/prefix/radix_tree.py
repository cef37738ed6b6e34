"""Radix tree of the token prefixes that requests share, built by sorting.

What a task sends, and the tree of it. Every edge is computed once, for any number of requests below it:

    examples Question 1 Paris is      examples ─┬─ Question 1 ─┬─ Paris is
    examples Question 1 Rome is                 │              └─ Rome is
    examples Question 2 A                       └─ Question 2        ← its last logits answer A and B
    examples Question 2 B

A model reads all but the last token of a request, because the logits at a position predict the next token. Requests
that differ only in their last token (choices of one token) have the same input. A request whose input is a prefix of
another's input needs no computation of its own. Both kinds are answered on the path to one leaf.
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
class TokenRequest:
    """Request for the log-likelihood of the last `continuation_length` tokens, given those before.

    Attributes:
        tokens: Token ids of context and continuation, [length].
        continuation_length: Tokens of the continuation; 0 < continuation_length < len(tokens).
        cut_tokens: Tokens that were removed from the left of the context.
    """

    tokens: Tokens
    continuation_length: int
    cut_tokens: int = 0

    @property
    def input_length(self) -> int:
        """Tokens that the model reads: all but the last."""
        return len(self.tokens) - 1

    @property
    def first_logit(self) -> int:
        """First position whose logits are needed: that of the last token of the context."""
        return self.input_length - self.continuation_length


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Node:
    """A prefix; a node adds the tokens after its parent's end.

    Attributes:
        request: Number of a request that begins with this prefix.
        end: Tokens of the prefix, counted from the root.
        children: Numbers of the nodes with longer prefixes; empty for a leaf.
        requests: For a leaf, the numbers of all requests that are answered on the path to it.
    """

    request: int
    end: int
    children: tuple[int, ...] = ()
    requests: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RadixTree:
    """Nodes in postorder: a loop over `nodes` visits children first, a reversed loop visits parents first.

    Attributes:
        requests: The requests, by number.
        nodes: The nodes, by number.
        roots: Numbers of the nodes without a parent. They share no prefix with each other.
        starts: First position of each node's own tokens.
    """

    requests: Sequence[TokenRequest]
    nodes: Sequence[Node]
    roots: tuple[int, ...]
    starts: Sequence[int]

    def tokens(self, node: int) -> Tokens:
        """Return the tokens that a node adds to its parent's, as a view of a request's own array."""
        found = self.nodes[node]
        return self.requests[found.request].tokens[self.starts[node] : found.end]

    def leaves(self, node: int) -> list[int]:
        """Return all leaves below a node, in order; the node itself if it is a leaf."""
        found, stack = [], [node]
        while stack:
            number = stack.pop()
            children = self.nodes[number].children
            stack.extend(reversed(children))
            if not children:
                found.append(number)
        return found


@dataclass(kw_only=True, eq=False, slots=True)
class _OpenNode:
    """A prefix on the path to the leaf that was added last: it can get more children."""

    end: int
    children: list[int] = field(default_factory=list)


def common_prefix_length(one: bytes, other: bytes) -> int:
    """Return the number of leading bytes that both have in common."""
    length = min(len(one), len(other))
    differs = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def build_tree(requests: Sequence[TokenRequest]) -> RadixTree:
    """Build the tree of `requests`. Their order changes only the numbers that the tree holds.

    In sorted order, sequences that share a prefix are adjacent, and a sequence comes directly before those that it is
    a prefix of. Tokens are compared as bytes: the order of bytes groups prefixes as well as the order of numbers does,
    and the comparison runs at memory speed.
    """
    keys = [request.tokens[:-1].tobytes() for request in requests]
    order = sorted(range(len(requests)), key=lambda number: (requests[number].tokens[-1], requests[number].first_logit))
    order.sort(key=keys.__getitem__)
    nodes: list[Node] = []
    path = [_OpenNode(end=0)]
    of_leaf: list[int] = []
    for number, following in zip_longest(order, order[1:]):
        of_leaf.append(number)
        key = keys[number]
        common = common_prefix_length(key, keys[following]) if following is not None else 0
        if following is not None and common == len(key):
            continue  # its input is a prefix of the next one's
        shared = common // _TOKEN_BYTES
        leaf = Node(request=number, end=len(key) // _TOKEN_BYTES, requests=tuple(of_leaf))
        of_leaf = []
        _add_leaf(nodes, path, leaf, shared)
    return _with_starts(requests, nodes, tuple(path[0].children))


def _add_leaf(nodes: list[Node], path: list[_OpenNode], leaf: Node, shared: int) -> None:
    """Add a leaf, and close the open nodes that are not on the path to the next leaf.

    Args:
        nodes: All nodes that are closed so far; extended.
        path: Open nodes from the root to the last leaf; changed.
        leaf: The leaf to add.
        shared: Tokens that the next leaf has in common with this one.
    """
    if shared > path[-1].end:
        path.append(_OpenNode(end=shared))
    nodes.append(leaf)
    path[-1].children.append(len(nodes) - 1)
    while path[-1].end > shared:
        closed = path.pop()
        if shared > path[-1].end:
            path.append(_OpenNode(end=shared))
        nodes.append(Node(request=leaf.request, end=closed.end, children=tuple(closed.children)))
        path[-1].children.append(len(nodes) - 1)


def pruned(tree: RadixTree, min_saving: float) -> RadixTree:
    """Return `tree` without the prefixes whose sharing saves fewer than `min_saving` tokens.

    A prefix of n tokens with k children saves n · (k - 1). The children of a removed node compute its tokens
    themselves. Children are examined before their parent. A removed node keeps its number in `nodes`, without children
    or parent.
    """
    nodes: list[Node] = []
    replacements: list[tuple[int, ...]] = []
    for number, node in enumerate(tree.nodes):
        children = tuple(remaining for child in node.children for remaining in replacements[child])
        saved = (node.end - tree.starts[number]) * (len(children) - 1)
        stays = not node.children or saved >= min_saving
        kept_children = children if stays else ()
        nodes.append(Node(request=node.request, end=node.end, children=kept_children, requests=node.requests))
        replacements.append((number,) if stays else children)
    roots = tuple(remaining for root in tree.roots for remaining in replacements[root])
    return _with_starts(tree.requests, nodes, roots)


def _with_starts(requests: Sequence[TokenRequest], nodes: Sequence[Node], roots: tuple[int, ...]) -> RadixTree:
    starts = [0] * len(nodes)
    for node in reversed(nodes):
        for child in node.children:
            starts[child] = node.end
    return RadixTree(requests=requests, nodes=nodes, roots=roots, starts=starts)
