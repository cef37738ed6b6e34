"""The tree of token prefixes: what is computed once."""

from __future__ import annotations

import math

from hypothesis import given, settings

from hpcq.evaluate.prefix.radix_tree import Ask, Tree, build, common_length, folded
from tests.unit.prefix.drawing import ask, asks


def _paths(tree: Tree) -> dict[int, tuple[int, ...]]:
    """The whole prefix of every node that can be reached."""
    found = {}
    waiting = [(root, ()) for root in tree.roots]
    while waiting:
        number, before = waiting.pop()
        found[number] = (*before, *tree.tokens(number).tolist())
        waiting += [(child, found[number]) for child in tree.nodes[number].children]
    return found


def _prefixes(asked: list[Ask]) -> set[tuple[int, ...]]:
    return {tuple(one.tokens[:end].tolist()) for one in asked for end in range(1, one.read + 1)}


@settings(max_examples=60)
@given(asks())
def test_every_prefix_is_computed_once(asked: list[Ask]) -> None:
    """The nodes' own tokens together are exactly the distinct prefixes of what is read."""
    tree = build(asked)

    paths = _paths(tree)

    assert all(len(path) == tree.nodes[number].end for number, path in paths.items())
    assert sum(len(tree.tokens(number)) for number in paths) == len(_prefixes(asked))


@settings(max_examples=60)
@given(asks())
def test_every_ask_is_read_on_one_path(asked: list[Ask]) -> None:
    """Each ask belongs to exactly one leaf, whose path begins with all that the ask reads."""
    for tree in (build(asked), folded(build(asked), 4), folded(build(asked), math.inf)):
        paths = _paths(tree)
        leaves = [leaf for root in tree.roots for leaf in tree.leaves(root)]

        assert sorted(number for leaf in leaves for number in tree.nodes[leaf].asks) == list(range(len(asked)))
        for leaf in leaves:
            for number in tree.nodes[leaf].asks:
                assert paths[leaf][: asked[number].read] == tuple(asked[number].tokens[:-1].tolist())


@settings(max_examples=60)
@given(asks())
def test_folding_never_computes_more_than_plainly(asked: list[Ask]) -> None:
    """The more a shared prefix must be worth, the more is computed, up to each distinct path in full."""
    tree = build(asked)

    computed = [
        sum(len(one.tokens(number)) for number in _paths(one))
        for one in (tree, folded(tree, 1), folded(tree, 5), folded(tree, math.inf))
    ]

    assert computed == sorted(computed)
    assert computed[0] == computed[1]
    assert computed[3] == sum(tree.nodes[leaf].end for root in tree.roots for leaf in tree.leaves(root))


def test_choices_of_one_token_are_one_leaf() -> None:
    """Requests that differ in their last token alone, and one that the others begin with, are one leaf."""
    tree = build([ask([5, 6, 7, 8]), ask([5, 6, 7, 9]), ask([5, 6, 7])])

    assert len(tree.nodes) == 1
    assert sorted(tree.nodes[0].asks) == [0, 1, 2]


def test_a_split_of_few_tokens_is_folded() -> None:
    """Two choices that begin with the same two tokens compute them twice if two tokens are not worth a row."""
    tree = build([ask([1, 1, 1, 1, 4, 4, 5, 9]), ask([1, 1, 1, 1, 4, 4, 6, 9]), ask([1, 1, 1, 1, 7, 7])])

    few = folded(tree, 3)

    (root,) = few.roots
    assert [few.tokens(child).tolist() for child in few.nodes[root].children] == [[4, 4, 5], [4, 4, 6], [7]]


def test_common_length_counts_bytes() -> None:
    """The common beginning ends at the first byte that differs, or where the shorter one does."""
    assert [common_length(b"abc", b"abd"), common_length(b"ab", b"abd"), common_length(b"", b"a")] == [2, 2, 0]
    assert [common_length(b"x", b"a"), common_length(b"ab", b"ab")] == [0, 2]
