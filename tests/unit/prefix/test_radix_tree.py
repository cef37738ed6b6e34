"""Radix tree of token prefixes."""

from __future__ import annotations

import math

from hypothesis import given, settings

from hpcq.evaluate.prefix.radix_tree import RadixTree, TokenRequest, build_tree, common_prefix_length, pruned
from tests.unit.prefix.strategies import token_request, token_request_lists


def _paths(tree: RadixTree) -> dict[int, tuple[int, ...]]:
    """Return the whole prefix of every reachable node."""
    found = {}
    waiting = [(root, ()) for root in tree.roots]
    while waiting:
        number, before = waiting.pop()
        found[number] = (*before, *tree.tokens(number).tolist())
        waiting += [(child, found[number]) for child in tree.nodes[number].children]
    return found


def _prefixes(requests: list[TokenRequest]) -> set[tuple[int, ...]]:
    return {tuple(one.tokens[:end].tolist()) for one in requests for end in range(1, one.input_length + 1)}


@settings(max_examples=60)
@given(token_request_lists())
def test_every_prefix_is_computed_once(requests: list[TokenRequest]) -> None:
    """The nodes' own tokens together are exactly the distinct prefixes of all inputs."""
    tree = build_tree(requests)

    paths = _paths(tree)

    assert all(len(path) == tree.nodes[number].end for number, path in paths.items())
    assert sum(len(tree.tokens(number)) for number in paths) == len(_prefixes(requests))


@settings(max_examples=60)
@given(token_request_lists())
def test_every_request_is_read_on_one_path(requests: list[TokenRequest]) -> None:
    """Each request belongs to exactly one leaf, whose path begins with the request's input."""
    for tree in (build_tree(requests), pruned(build_tree(requests), 4), pruned(build_tree(requests), math.inf)):
        paths = _paths(tree)
        leaves = [leaf for root in tree.roots for leaf in tree.leaves(root)]

        assert sorted(number for leaf in leaves for number in tree.nodes[leaf].requests) == list(range(len(requests)))
        for leaf in leaves:
            for number in tree.nodes[leaf].requests:
                assert paths[leaf][: requests[number].input_length] == tuple(requests[number].tokens[:-1].tolist())


@settings(max_examples=60)
@given(token_request_lists())
def test_pruning_computes_at_most_every_path_in_full(requests: list[TokenRequest]) -> None:
    """A higher minimum saving means more computed tokens, up to every distinct path in full."""
    tree = build_tree(requests)

    computed = [
        sum(len(one.tokens(number)) for number in _paths(one))
        for one in (tree, pruned(tree, 1), pruned(tree, 5), pruned(tree, math.inf))
    ]

    assert computed == sorted(computed)
    assert computed[0] == computed[1]
    assert computed[3] == sum(tree.nodes[leaf].end for root in tree.roots for leaf in tree.leaves(root))


def test_choices_of_one_token_are_one_leaf() -> None:
    """Requests that differ only in their last token, and one that is a prefix of them, are one leaf."""
    tree = build_tree([token_request([5, 6, 7, 8]), token_request([5, 6, 7, 9]), token_request([5, 6, 7])])

    assert len(tree.nodes) == 1
    assert sorted(tree.nodes[0].requests) == [0, 1, 2]


def test_a_short_shared_prefix_is_pruned() -> None:
    """Two choices with two common tokens compute them twice if the minimum saving is higher."""
    tree = build_tree(
        [
            token_request([1, 1, 1, 1, 4, 4, 5, 9]),
            token_request([1, 1, 1, 1, 4, 4, 6, 9]),
            token_request([1, 1, 1, 1, 7, 7]),
        ]
    )

    few = pruned(tree, 3)

    (root,) = few.roots
    assert [few.tokens(child).tolist() for child in few.nodes[root].children] == [[4, 4, 5], [4, 4, 6], [7]]


def test_common_length_counts_bytes() -> None:
    """The common prefix ends at the first byte that differs, or at the end of the shorter one."""
    assert [
        common_prefix_length(b"abc", b"abd"),
        common_prefix_length(b"ab", b"abd"),
        common_prefix_length(b"", b"a"),
    ] == [2, 2, 0]
    assert [common_prefix_length(b"x", b"a"), common_prefix_length(b"ab", b"ab")] == [0, 2]
